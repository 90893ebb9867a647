"""A model that abstains, or answers with a set of classes, by a threshold that was promised."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_pacgen.errors import InputError
from hf_pacgen.model.fingerprint import weights_fingerprint
from hf_pacgen.model.state import unwrap
from hf_pacgen.results.promise import ABSTAIN, SETS, Promise

__all__ = ["ABSTAINED", "FILE", "SelectiveClassifier", "chances_of", "confidence_of", "save_selective"]

FILE = "hf_pacgen_selective.json"
"""Beside the model, the promise with its threshold."""
ABSTAINED = -1
"""The class that is no answer."""


def chances_of(logits: Tensor) -> Tensor:
    """The softmax of logits (examples, classes), at least in float32; NaN where one of them is not finite."""
    values = logits if logits.element_size() > 4 else logits.float()
    return values.softmax(-1).masked_fill(~values.isfinite().all(-1, keepdim=True), torch.nan)


def confidence_of(logits: Tensor) -> Tensor:
    """The largest probability of each example, float64; NaN, which no threshold reaches, if a logit is not finite."""
    return chances_of(logits).amax(-1).double()


def save_selective(promise: Promise, folder: str | os.PathLike[str]) -> Path:
    """Write a promise with a threshold beside a model, as ``hf_pacgen_selective.json``, and say where.

    Raises:
        InputError: a promise without a threshold.
        FileNotFoundError: there is no such folder.
    """
    _require_rule(promise)
    path = Path(folder) / FILE
    promise.save(path)
    return path


class SelectiveClassifier(nn.Module):
    """A classifier with a promised threshold: it abstains below it, or gives all classes from it on.

    It stays in evaluation mode, in which the promise was made.

    Args:
        model: a model of transformers with one class for an example, or another with ``logits`` among its outputs.
        promise: made of this model with ``max_error=`` or ``coverage=``.
        check: whether the weights have to be those that the promise names.

    Raises:
        InputError: a promise without a threshold, or of other weights.

    >>> SelectiveClassifier.decide(torch.tensor([[3.0, 0.0], [0.1, 0.0]]), threshold=0.9).tolist()
    [0, -1]
    """

    def __init__(self, model: nn.Module, promise: Promise, *, check: bool = True) -> None:
        super().__init__()
        self.rule, self.threshold = _require_rule(promise)
        wanted: Any = (promise.origin.get("model") or {}).get("weights")
        found = weights_fingerprint(unwrap(model)) if check and wanted is not None else wanted
        if found != wanted:
            raise InputError(
                f"The promise is of other weights ({wanted[:12]}) than this model's ({str(found)[:12]}), of which it "
                "says nothing. Promise anew, or load the model that it was made of."
            )
        self.model, self.promise = model, promise
        self.train(False)

    def train(self, mode: bool = True) -> SelectiveClassifier:
        """Evaluation mode, whatever is asked for: nothing was promised of a model with dropout."""
        return super().train(False)

    @classmethod
    def load(cls, model: nn.Module, folder: str | os.PathLike[str], *, check: bool = True) -> SelectiveClassifier:
        """The model with the promise that lies in its folder (:func:`save_selective`).

        Raises:
            MissingFile, InputError: there is no such file, or it is no promise with a threshold of this model.
        """
        path = Path(folder)
        return cls(model, Promise.load(path / FILE if path.is_dir() else path), check=check)

    @staticmethod
    def decide(logits: Tensor, *, threshold: float) -> Tensor:
        """The class of each example whose confidence reaches the threshold, -1 for the others; (examples,)."""
        return logits.argmax(-1).masked_fill(~(confidence_of(logits) >= threshold), ABSTAINED)

    @staticmethod
    def sets(logits: Tensor, *, threshold: float) -> Tensor:
        """Which classes have at least that probability, as a mask (examples, classes).

        Where a logit is not finite every class is in the set: nothing is excluded that might be right.
        """
        return ~(chances_of(logits).double() < threshold)

    @torch.no_grad()
    def forward(self, *args: Any, **inputs: Any) -> Tensor:
        """The model's answers: classes with -1 for none, (examples,), or a mask of classes, (examples, classes)."""
        return self.answers(self.model(*args, **inputs))

    def answers(self, outputs: Any) -> Any:
        """The answers that outputs stand for: those of the model, its logits, or what a pipeline returned.

        Of a pipeline's outputs, ``{"label": ..., "score": ...}`` each, come the labels with None for none; where it
        gave all classes (``top_k=None``), lists of them.
        """
        if isinstance(outputs, (list, tuple)) and all(isinstance(one, (Mapping, list)) for one in outputs):
            return [self._of_pipeline(one) for one in outputs]
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
        if not isinstance(logits, Tensor) and isinstance(outputs, (list, tuple)):
            logits = next((t for t in outputs if isinstance(t, Tensor) and t.ndim == 2), None)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise InputError(
                "A selective classifier needs logits (examples, classes), outputs that have them, or what a "
                f"text-classification pipeline returned; got {type(outputs).__name__}."
            )
        if self.rule == SETS:
            return self.sets(logits, threshold=self.threshold)
        return self.decide(logits, threshold=self.threshold)

    def _of_pipeline(self, output: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Any:
        scores = [output] if isinstance(output, Mapping) else list(output)
        if not all(isinstance(one, Mapping) and {"label", "score"} <= set(one) for one in scores) or not scores:
            raise InputError(
                "A pipeline's output must have 'label' and 'score' (text, image or audio classification); got "
                f"{sorted(scores[0]) if scores and isinstance(scores[0], Mapping) else type(output).__name__}."
            )
        if self.rule == ABSTAIN:
            best = max(scores, key=lambda one: one["score"])
            return best["label"] if best["score"] >= self.threshold else None
        if isinstance(output, Mapping):
            raise InputError("Sets need the scores of all classes: call the pipeline with top_k=None.")
        return [one["label"] for one in scores if one["score"] >= self.threshold]


def _require_rule(promise: Promise) -> tuple[str, float]:
    if promise.rule is None or promise.threshold is None:
        why = "none could be promised" if promise.rule is not None else "it was made without max_error= and coverage="
        raise InputError(f"The promise has no threshold to go by: {why}. Promise with one of these first.")
    return promise.rule, promise.threshold
