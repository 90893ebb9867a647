"""The bounded loss that is certified: one error in [0, 1] for every independent example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_pacgen.data.contents import count_examples
from hf_pacgen.data.losses import IGNORED, LossKind, aligned
from hf_pacgen.data.objective import Objective

# error_fn(model, batch) -> one error in [0, 1] for each example of the batch, shape (examples,)
ErrorFunction = Callable[[nn.Module, Any], Tensor]
OWN_ERROR = "Pass error_fn(model, batch) -> one error in [0, 1] for each example."


@dataclass(eq=False)
class ErrorRate:
    """Checked errors of a model's examples, (examples,), by the user's function or as the 0-1 error of its logits.

    The 0-1 error of an example with several labels (a document of a language model, a text with tagged tokens) is the
    fraction of its labels that is predicted wrongly: documents are independent of each other, tokens are not.
    """

    objective: Objective
    error_fn: ErrorFunction | None = None

    def __post_init__(self) -> None:
        if self.error_fn is not None and not callable(self.error_fn):
            raise TypeError(
                "error_fn must be a function error_fn(model, batch) -> one error in [0, 1] for each example; got "
                f"{type(self.error_fn).__name__}."
            )

    @torch.no_grad()
    def __call__(self, batch: Any, index: int) -> Tensor:
        """The errors of one batch, float64 on the CPU."""
        model = self.objective.model
        if self.error_fn is not None:
            errors = self.error_fn(model, batch)
        elif isinstance(batch, Mapping):
            errors = _wrong_fraction(*self._scored(model(**batch), batch, index), index)
        else:
            raise ValueError(
                f"The 0-1 error needs batches that are dicts with labels; got {type(batch).__name__}. {OWN_ERROR}"
            )
        return checked_errors(errors, count_examples(batch), index)

    def soft(self, batch: Any, index: int) -> Tensor | None:
        """The probability 1 - p of not predicting the label, with its gradient; None if the errors are the user's."""
        if self.error_fn is not None or not isinstance(batch, Mapping):
            return None
        logits, labels = self._scored(self.objective.model(**batch), batch, index)
        counted = labels != IGNORED
        dtype = torch.promote_types(logits.dtype, torch.float32)
        chosen = logits.to(dtype).softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return _mean_over_labels((1 - chosen) * counted, counted)

    def _scored(self, outputs: Any, batch: Mapping[str, Any], index: int) -> tuple[Tensor, Tensor]:
        """Logits (examples, ..., classes) and their labels (examples, ...)."""
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
        labels = batch.get("labels", batch.get("label"))
        kind = self.objective.kind
        if isinstance(logits, Tensor) and isinstance(labels, Tensor) and not labels.is_floating_point():
            # one label for each example can be meant in one way only
            shift = LossKind.ALIGNED.facts if kind.facts is None and labels.ndim == 1 else kind.facts
            pair = aligned(logits, labels, shift) if shift is not None else None
            if pair is not None and logits.shape[-1] > 1:
                return pair[0], pair[1].to(logits.device)
        shapes = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in (logits, labels)]
        raise ValueError(
            f"Batch {index} has no 0-1 error: expected logits (..., classes) and integer labels (...) of a "
            f"cross-entropy; got {shapes[0]} and {shapes[1]}. {OWN_ERROR}"
        )


def _wrong_fraction(logits: Tensor, labels: Tensor, index: int) -> Tensor:
    counted = labels != IGNORED
    # a noisy model may overflow: what is not finite is wrong
    wrong = (logits.argmax(-1) != labels) | ~logits.isfinite().all(-1)
    # leaving the example out here would change n, and with it what is certified
    if not bool(counted.reshape(len(labels), -1).any(1).all()):
        raise ValueError(
            f"Batch {index} has an example without a label: all of its labels are {IGNORED}, or it has a single token. "
            "Every example counts in a certificate; leave such examples out of the data."
        )
    return _mean_over_labels((wrong & counted).double(), counted)


def _mean_over_labels(values: Tensor, counted: Tensor) -> Tensor:
    return values.reshape(len(values), -1).sum(1) / counted.reshape(len(values), -1).sum(1)


def checked_errors(errors: Any, examples: int, index: int) -> Tensor:
    """What a user's function returned, float64 on the CPU, if it is one error in [0, 1] for each example."""
    if not isinstance(errors, Tensor):
        raise ValueError(f"error_fn must return a tensor with one error for each example; got {type(errors).__name__}.")
    if errors.shape != (examples,):
        raise ValueError(
            f"error_fn must return one error for each independent example: expected shape ({examples},) for batch "
            f"{index}, got {tuple(errors.shape)}. Tokens of a document depend on each other: average them over it."
        )
    values = errors.detach().double().cpu()
    bad = ~((values >= 0) & (values <= 1))  # NaN fails every comparison
    if bool(bad.any()):
        raise ValueError(
            f"error_fn must return errors in [0, 1]; batch {index} has {values[bad][0].item():g}. "
            "A bound needs a bounded loss: use the 0-1 error, or clip and rescale."
        )
    return values


def is_per_document(batch: Any) -> bool:
    """Whether an example has several labels, so that it is a document."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    return isinstance(labels, Tensor) and not labels.is_floating_point() and labels.ndim > 1
