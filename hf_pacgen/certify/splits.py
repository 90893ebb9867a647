"""Keep the examples that trained a prior apart from those it certifies."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from hf_pacgen.model.state import unwrap

DERIVED = ("attention_mask", "token_type_ids", "position_ids")  # columns that a collator may add


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOutPrior:
    """A prior trained on a part of the data, with the two parts.

    Attributes:
        model: trained on ``prior_data``; may be trained further, on all the data, and be certified.
        weights: its weights and buffers as ``train`` left them: the center of the prior.
        prior_data, certificate_data: the two parts.
        num_prior_examples, fraction: length of ``prior_data``, and the share of the data that was asked for.
        allowed, used: how often each example's fingerprint occurs in ``certificate_data`` and in ``prior_data``.
    """

    model: nn.Module
    weights: dict[str, Tensor]
    prior_data: Any
    certificate_data: Any
    num_prior_examples: int
    fraction: float
    allowed: Counter[bytes]
    used: Counter[bytes]

    def count_used(self, prints: Iterable[bytes]) -> int:
        """How many of some examples have trained the prior."""
        given = Counter(prints)
        # equal examples may occur in both parts: only those count that the certificate's part does not have so often
        return sum(max(0, count - self.allowed[key]) for key, count in given.items() if key in self.used)


def train_prior(
    model: nn.Module,
    data: Any,
    train: Callable[[nn.Module, Any], Any],
    *,
    prior_data_fraction: float = 0.5,
    seed: int = 0,
) -> HeldOutPrior:
    """Train a copy of a model on a random part of the data: the prior of a certificate on the other part.

    Args:
        model: is copied, and not changed.
        data: a ``datasets.Dataset``, a map-style dataset, or a list of batches (of which some are drawn).
        train: ``train(model, prior_data)`` trains in place, in any way; if it returns a module, that one counts.
        prior_data_fraction: share of the data on which the prior is trained, in (0, 1).
        seed: of the split.

    Returns:
        The prior, for ``certify(model, held_out.certificate_data, prior=held_out)``.

    Raises:
        ValueError, TypeError: a fraction that leaves a part empty, and data that cannot be split by index.

    Source: Ambroladze, Parrado-Hernández, Shawe-Taylor (NIPS 2006); Perez-Ortiz et al. (JMLR 2021).

    >>> held_out = train_prior(nn.Linear(1, 1), list(range(10)), lambda model, data: None, prior_data_fraction=0.3)
    >>> len(held_out.prior_data), len(held_out.certificate_data)
    (3, 7)
    """
    if not 0 < prior_data_fraction < 1:
        wanted = "prior_data_fraction must be in (0, 1), the share of the data that trains the prior"
        raise ValueError(f"{wanted}; got {prior_data_fraction}.")
    if isinstance(data, (DataLoader, Mapping, str)) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise TypeError(
            f"data must be a dataset with indices, or a list of batches, to be split; got {type(data).__name__}. "
            "Split the dataset, and make a DataLoader of each part."
        )
    first = round(prior_data_fraction * len(data))
    if not 0 < first < len(data):
        raise ValueError(
            f"prior_data_fraction={prior_data_fraction} of {len(data)} examples leaves one part empty; "
            "give more data, or a fraction nearer to 0.5."
        )
    # sorted, so that each part is read from front to back
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    prior_data, certificate_data = (select(data, sorted(rows)) for rows in (order[:first], order[first:]))
    # a copy, so that the user's model may still become the posterior
    trained = copy.deepcopy(unwrap(model))
    returned = train(trained, prior_data)
    trained = unwrap(returned) if isinstance(returned, nn.Module) else trained
    return HeldOutPrior(
        model=trained,
        weights={name: value.detach().clone() for name, value in trained.state_dict().items()},
        prior_data=prior_data,
        certificate_data=certificate_data,
        num_prior_examples=first,
        fraction=float(prior_data_fraction),
        allowed=Counter(_row_fingerprints(certificate_data)),
        used=Counter(_row_fingerprints(prior_data)),
    )


def select(data: Any, rows: list[int]) -> Any:
    """Some rows of a dataset, or some batches of a list."""
    if hasattr(data, "column_names"):
        return data.select(rows)
    return [data[row] for row in rows] if isinstance(data, Sequence) else Subset(data, rows)


def _row_fingerprints(data: Any) -> Iterator[bytes]:
    # a list holds batches, a dataset examples
    batched = isinstance(data, Sequence) and not isinstance(data, Subset)
    for row in range(len(data)):
        yield from batch_fingerprints(data[row]) if batched else [fingerprint(data[row])]


def batch_fingerprints(batch: Any) -> Iterator[bytes]:
    """The fingerprint of every example of a batch; the same as of the row it was made of."""
    found = [(name, value) for name, value in leaves(batch) if isinstance(value, Tensor) and value.ndim]
    if not found:  # a batch of an unknown kind counts as one example
        yield fingerprint(batch)
        return
    columns = {f"{name}/{i}": value.detach().cpu() for i, (name, value) in enumerate(found)}
    for row in range(min(map(len, columns.values()))):
        yield fingerprint({name: value[row] for name, value in columns.items()})


def fingerprint(example: Any) -> bytes:
    """A hash of an example's values, whatever their names, container and number type; padding does not count.

    >>> padded = {"input_ids": torch.tensor([7, 9, 0]), "attention_mask": torch.tensor([1, 1, 0]), "labels": 1}
    >>> fingerprint({"label": 1, "input_ids": [7, 9]}) == fingerprint(padded)
    True
    """
    # sorted digests without names, since collators rename label to labels and reorder
    values = [(name.split("/")[0], value) for name, value in leaves(example)]
    mask = next((numpy.asarray(value).astype(bool) for name, value in values if name == "attention_mask"), None)
    digests = sorted(_digest(_bytes(value, mask)) for name, value in values if name not in DERIVED)
    return _digest(b"".join(digests))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, list)) and (not isinstance(value, list) or all(map(_is_number, value)))


def _bytes(value: Any, mask: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")  # text from the web may hold half of a pair
    if not isinstance(value, Tensor) and hasattr(value, "tobytes") and hasattr(value, "mode"):  # an image
        return value.tobytes()
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype is torch.bfloat16 else value
    array = numpy.asarray(value)
    if mask is not None and array.shape == mask.shape:
        array = array[mask]
    if array.dtype == object:
        return repr(value).encode("utf-8", "surrogatepass")
    # one float type, so that lists (float64) and tensors (float32) of the same numbers agree
    return numpy.ascontiguousarray(array, dtype=numpy.int64 if array.dtype.kind in "biu" else numpy.float32).tobytes()
