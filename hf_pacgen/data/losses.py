"""What the loss of a model on a batch is: its kind, its units, and the precision it is computed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, SupportsFloat

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_pacgen.facts import Choice
from hf_pacgen.model.state import base_model

__all__ = [
    "IGNORED",
    "BatchLoss",
    "LossFunction",
    "LossKind",
    "NothingLabeled",
    "aligned",
    "counted_labels",
    "custom_loss",
    "is_causal",
    "known_indices",
    "no_loss",
    "require_units",
    "scored_units",
]

LossFunction = Callable[[nn.Module, Any], tuple[Tensor, Any]]
"""``loss_fn(model, batch) -> (loss_sum, num_units)``."""
IGNORED = -100
"""The label of tokens that do not count."""


class LossKind(Choice):
    """What the model's loss turned out to be, by comparing it with a cross-entropy on its logits.

    A member's facts are the labels at the beginning of a row that no logits predict; None where logits and labels have
    no such order, so that labels cannot be sampled from the model's own predictions.
    """

    facts: int | None

    CAUSAL = "cross-entropy of the next token", 1
    ALIGNED = "cross-entropy", 0
    OTHER = "a loss that is no cross-entropy on logits", None
    CUSTOM = "a loss function that was passed in", None


@dataclass(frozen=True)
class BatchLoss:
    """Sum of the loss over a batch's units (labeled tokens or examples), and their number."""

    total: Tensor
    units: float


def is_causal(model: nn.Module) -> bool:
    """Whether a model predicts the next token, so that labels are shifted by one."""
    base = base_model(model)
    return type(base).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


@contextmanager
def known_indices(index: int) -> Iterator[None]:
    """Names the batch whose labels or tokens a model looks up where there are none.

    Raises:
        ValueError: instead of an IndexError.
    """
    try:
        yield
    except IndexError as error:
        raise ValueError(
            f"Batch {index} has a label or an input that the model has no place for ({error}): expected labels from 0 "
            "to num_labels - 1, or -100 for none, and token ids below the size of the vocabulary. Check how the data "
            "was made, or load the model with as many labels."
        ) from error


def custom_loss(returned: Any) -> BatchLoss:
    """What a user's ``loss_fn`` returned.

    Raises:
        TypeError: it is no pair of a scalar tensor and a number.
        ValueError: the number is negative or not finite.
    """
    pair: Any = returned if isinstance(returned, (tuple, list)) and len(returned) == 2 else (None, None)
    total, units = pair
    if not (isinstance(total, Tensor) and total.numel() == 1 and _is_number(units)):
        raise TypeError(
            "loss_fn must return (loss_sum, num_units): the loss summed over units (not their mean) as a scalar "
            f"tensor, and their number; got {_shape_in_words(returned)}. Return "
            "(cross_entropy(..., reduction='sum'), len(labels)), for instance."
        )
    if not (math.isfinite(units) and units >= 0):
        raise ValueError(
            f"loss_fn must return (loss_sum, num_units) with a finite num_units >= 0; got {float(units)}. "
            "Return the number of examples or tokens that loss_sum sums over."
        )
    return BatchLoss(total, float(units))


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, SupportsFloat) and not isinstance(value, str)


def _shape_in_words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {', '.join(map(_shape_in_words, value)) or 'nothing'}"
    return type(value).__name__


def no_loss(batch: Mapping[str, Any], index: int) -> ValueError:
    """The error of a batch without labels."""
    return ValueError(
        f"Batch {index} gave no loss: expected the model's output to have one, which it has when the batch has "
        f"labels; the batch has {sorted(batch)}. Add labels, or pass loss_fn(model, batch) -> (loss_sum, num_units)."
    )


def aligned(logits: Tensor, labels: Tensor, shift: int) -> tuple[Tensor, Tensor] | None:
    """Logits (..., classes) and the labels (...) that they predict, ``shift`` places on; None if shapes do not fit."""
    if shift:
        missing = logits.shape[1] - labels.shape[1] if logits.ndim == 3 and labels.ndim == 2 else -1
        if missing < 0:
            return None
        # virtual tokens of a prompt come before the labels
        labels = functional.pad(labels, (missing, 0), value=IGNORED)[:, shift:]
        logits = logits[:, :-shift]
    return (logits, labels) if logits.shape[:-1] == labels.shape else None


def scored_units(
    logits: Tensor, labels: Tensor, kind: LossKind, ignored: Sequence[int] = ()
) -> tuple[Tensor, Tensor] | None:
    """Logits (units, classes), at least float32, and labels (units,) of a cross-entropy; None if shapes do not fit.

    Labels that are -100, or one of ``ignored``, do not count.
    """
    if kind.facts is None:
        raise ValueError(f"Only a cross-entropy has scored units, and this is {kind.value}. Use a loss with logits.")
    pair = aligned(logits, labels, kind.facts)
    if pair is None:
        return None
    logits, labels = pair[0], pair[1].to(logits.device)
    valid = counted_labels(labels, ignored)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits[valid].to(dtype), labels[valid]


def counted_labels(labels: Tensor, ignored: Sequence[int] = ()) -> Tensor:
    """Which labels count: all but -100, and some others that a model may ignore."""
    counted = labels != IGNORED
    for number in ignored:
        counted &= labels != number
    return counted


class NothingLabeled(ValueError):
    """No batch has a label."""


class NotFinite(ValueError):
    """A loss, or what was made of it, is no finite number."""


def require_units(units: float) -> None:
    """Raise if there is nothing to average over."""
    if units == 0:
        raise NothingLabeled(
            "The data has no loss unit: expected at least one labeled token or example, got none. "
            "Check the labels, or the number of units that loss_fn returns."
        )
