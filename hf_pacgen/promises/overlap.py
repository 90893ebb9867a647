"""Held-out examples that the model was trained on, and copies among them, by hashes of the model's inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from hf_pacgen.certify.prints import batch_fingerprints
from hf_pacgen.certify.validity import holds_several
from hf_pacgen.data.collation import model_inputs
from hf_pacgen.data.contents import LABEL_NAMES, documents, labels_of
from hf_pacgen.data.losses import IGNORED
from hf_pacgen.data.own_loss import label_names_of
from hf_pacgen.model.state import base_model

__all__ = [
    "check_copies",
    "check_names",
    "check_overlap",
    "check_packing",
    "input_fingerprints",
    "input_names",
]

MOST_REPEATED = 0.05
"""Share of the examples that may equal another one before they are taken for copies."""
MADE_OF_LABELS = ("decoder_input_ids", "decoder_attention_mask", "labels_mask")
"""Inputs that a collator makes of the labels."""
DERIVED = ("position_ids", "token_type_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def input_fingerprints(model: nn.Module, batch: Any) -> list[bytes]:
    """A hash of every example's inputs, whatever its labels, its padding and the order of the columns.

    An example that stands in the training data with another label has been seen all the same.
    """
    if not isinstance(batch, Mapping):
        return list(batch_fingerprints(batch))
    inputs = _inputs(model, batch)
    tokens = inputs.get("input_ids")
    if isinstance(tokens, Tensor):
        inputs["input_ids"] = _unmasked(model, tokens, batch)
        if "attention_mask" not in inputs and (mask := _not_padding(model, tokens)) is not None:
            inputs["attention_mask"] = mask
    return list(batch_fingerprints(inputs))


def input_names(model: nn.Module, batch: Any) -> frozenset[str]:
    """What the inputs are called that count in the hashes; nothing where they have no names."""
    return frozenset(map(str, _inputs(model, batch))) if isinstance(batch, Mapping) else frozenset()


def check_names(held_out: Collection[str], trained: Collection[str]) -> None:
    """Refuse training data whose inputs cannot be compared with the held-out ones.

    Raises:
        ValueError: the two have no input in common, such as token ids and texts: copies would go unseen.
    """
    if held_out and not set(held_out) & set(trained):
        raise ValueError(
            f"The held-out examples have the inputs {sorted(held_out)}, and the training data has "
            f"{sorted(trained) or 'none with a name'}: nobody can see whether examples stand in both. Prepare the "
            "training data as the held-out data, for example with the same tokenizer."
        )


def check_overlap(
    held_out: Sequence[bytes],
    trained: Collection[bytes],
    *,
    assume_independent: bool,
    what: str = "held-out examples",
) -> str | None:
    """A sentence where a few held-out examples stand in the training data, and the user vouches for their draw.

    Raises:
        ValueError: there are some, with their number; even if vouched for, so many that the data are the same.
    """
    known = set(trained)
    seen = sum(key in known for key in held_out)
    if not seen:
        return None
    found = f"{seen:,} of the {len(held_out):,} {what} also stand in the training data (equal inputs)"
    few = seen <= MOST_REPEATED * len(held_out)
    if few and assume_independent:
        return f"{found}; they count as drawn independently."
    # by a random split of data with equal inputs some come to lie in both parts, and the promise is as good as ever
    vouch = " If the data were split at random and some inputs are equal by nature, pass assume_independent=True."
    raise ValueError(
        f"{found}: the model has seen them. Remove these: what is promised then is of new "
        f"inputs that the training data does not have.{vouch if few else ''}"
    )


def check_copies(held_out: Sequence[bytes], *, assume_independent: bool) -> str | None:
    """A sentence where a few held-out examples equal another one.

    Raises:
        ValueError: so many that they are copies, and not draws which happen to be equal.
    """
    repeated = len(held_out) - len(set(held_out))
    if not repeated:
        return None
    if repeated > MOST_REPEATED * len(held_out) and not assume_independent:
        raise ValueError(
            f"{repeated:,} of the {len(held_out):,} held-out examples equal an earlier one, so their number is not "
            "that of independent examples. Remove the copies; if equal examples were drawn independently, pass "
            "assume_independent=True."
        )
    return f"{repeated:,} of the held-out examples equal an earlier one; they count as drawn independently."


def check_packing(model: nn.Module, batch: Any, index: int, *, causal: bool) -> None:
    """Refuse rows that hold several documents, whose errors depend on each other.

    Raises:
        ValueError: positions start anew within a row, or a token that ends a document stands between others.
    """
    tokens = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(tokens, Tensor) or tokens.ndim != 2:
        return
    mask = batch.get("attention_mask")
    seen = mask.bool() if isinstance(mask, Tensor) and mask.shape == tokens.shape else torch.ones_like(tokens).bool()
    if documents(batch) is not None or holds_several(model, batch, tokens, seen, causal=causal):
        raise ValueError(
            f"Batch {index} has rows of several documents (positions start anew, or a token that ends a document "
            "stands between others). Pieces of one document depend on each other: what is independent are documents. "
            "Give one document a row; if rows are independent of each other, pass assume_independent=True."
        )


def _inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    names, labels = model_inputs(model), {*LABEL_NAMES, *label_names_of(model), *MADE_OF_LABELS, *DERIVED}
    return {k: v for k, v in batch.items() if k not in labels and (k in names or not _names_all(model, batch))}


def _names_all(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    """Whether the model's signature names at least one of the inputs, so that other columns are none."""
    return any(name in model_inputs(model) and name not in LABEL_NAMES for name in batch)


def _unmasked(model: nn.Module, tokens: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Tokens as they were before some were masked at random, which labels remember."""
    labels = labels_of(batch)
    masked = type(base_model(model)).__name__ in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
    if not masked or not isinstance(labels, Tensor) or labels.shape != tokens.shape:
        return tokens
    return tokens.where(labels == IGNORED, labels)


def _not_padding(model: nn.Module, tokens: Tensor) -> Tensor | None:
    pad: Any = getattr(getattr(model, "config", None), "pad_token_id", None)
    return None if not isinstance(pad, int) or tokens.ndim != 2 else (tokens != pad).long()
