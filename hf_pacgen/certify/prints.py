"""Examples by their contents: one print for an example, whether it is a row of a table or of a batch.

What counts is what the model reads: its inputs and the labels, without padding.  A table may have more columns than
that, and a collator may drop some, rename the labels, and fill up the ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
from torch import Tensor, nn

from hf_pacgen.data.collation import model_inputs
from hf_pacgen.data.contents import LABEL_NAMES, count_examples, labels_of, take
from hf_pacgen.data.losses import IGNORED
from hf_pacgen.model.state import base_model

DERIVED = ("attention_mask", "token_type_ids", "position_ids")  # columns that a collator may add
LABELS = "labels"  # the name that labels go by here, whatever they are called


def fingerprint(example: Any, model: nn.Module | None = None) -> bytes:
    """A hash of an example's values, whatever their names, container and number type; padding does not count.

    Of a mapping only the inputs of ``model`` and the labels count; all of it, where no model is given or none of its
    inputs is there.

    >>> import torch
    >>> padded = {"input_ids": torch.tensor([7, 9, 0]), "attention_mask": torch.tensor([1, 1, 0]), "labels": 1}
    >>> fingerprint({"label": 1, "input_ids": [7, 9]}) == fingerprint(padded)
    True
    """
    return _print(read_by(example, model), _masks_labels(model))


def batch_fingerprints(batch: Any, model: nn.Module | None = None) -> Iterator[bytes]:
    """The fingerprint of every example of a batch; the same as of the row it was made of."""
    batch, masks = read_by(batch, model), _masks_labels(model)
    if isinstance(labels_of(batch), (list, tuple)):  # such as the boxes of each image
        size = count_examples(batch)
        for row in range(size):
            yield _print(take(batch, [row], size), masks)
        return
    found = [(name, value) for name, value in leaves(batch) if isinstance(value, Tensor) and value.ndim]
    if not found:  # a batch of an unknown kind counts as one example
        yield _print(batch, masks)
        return
    columns = [(name, value.detach().cpu()) for name, value in found]
    for row in range(min(len(value) for _, value in columns)):
        yield _print([{name: value[row]} for name, value in columns], masks)


def read_by(example: Any, model: nn.Module | None) -> Any:
    """Of an example or a batch what a model reads: its inputs, and the labels by one name."""
    if not isinstance(example, Mapping):
        return example
    labels = labels_of(example)
    others = {key: value for key, value in example.items() if key not in LABEL_NAMES}
    if model is not None:
        names = model_inputs(model)
        if known := [key for key in others if key in names and key not in DERIVED and others[key] is not None]:
            # the mask is no content, but tells padding
            others = {key: others[key] for key in (*known, "attention_mask") if key in others}
    return others if labels is None else {**others, LABELS: labels}


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors, arrays, texts and numbers in a batch or an example, with the names that they go by."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, str(key))
    elif isinstance(value, tuple) or (isinstance(value, list) and not all(_is_number(item) for item in value)):
        for item in value:
            yield from leaves(item, name)
    elif value is not None:
        yield name, value


def _masks_labels(model: nn.Module | None) -> bool:
    # the labels of an encoder-decoder are another text than the one whose padding the mask tells
    return not getattr(getattr(base_model(model), "config", None), "is_encoder_decoder", False)


def _print(example: Any, masks_labels: bool) -> bytes:
    # sorted digests without names, since collators reorder
    values = list(leaves(example))
    mask = next((numpy.asarray(value).astype(bool) for name, value in values if name == "attention_mask"), None)
    counted = [(name, value) for name, value in values if name not in DERIVED]
    return _digest(b"".join(sorted(_digest(_bytes(name, value, mask, masks_labels)) for name, value in counted)))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, list)) and (not isinstance(value, list) or all(map(_is_number, value)))


def _bytes(name: str, value: Any, mask: Any, masks_labels: bool) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")  # text from the web may hold half of a pair
    if not isinstance(value, Tensor) and hasattr(value, "tobytes") and hasattr(value, "mode"):  # an image
        return value.tobytes()
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    try:
        array = numpy.asarray(value)
    except ValueError:  # lists of different lengths
        return repr(value).encode("utf-8", "surrogatepass")
    if mask is not None and array.shape[: mask.ndim] == mask.shape and (masks_labels or name != LABELS):
        array = array[mask]
    if array.dtype.kind not in "biuf":
        return repr(value).encode("utf-8", "surrogatepass")
    if name == LABELS and array.ndim == 1 and array.dtype.kind in "iu" and (array == IGNORED).any():
        counted = (array != IGNORED).nonzero()[0]  # collators fill labels up with this
        array = array[counted[0] : counted[-1] + 1] if len(counted) else array[:0]
    # one type, so that lists (float64) and tensors (float32), integers and flags of the same numbers agree
    array = array.astype(numpy.float32) if array.dtype.kind == "f" else array
    return numpy.ascontiguousarray(array, dtype=numpy.float64).tobytes()
