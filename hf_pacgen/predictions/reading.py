"""From a model's outputs to the places where it predicts a class: one an example, or one a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.data.contents import LABEL_NAMES, count_examples, labels_of
from hf_pacgen.data.losses import IGNORED, aligned, counted_labels, known_indices
from hf_pacgen.data.own_loss import label_names_of
from hf_pacgen.promises.losses import Reader

__all__ = ["PlaceReader", "Places"]

EXPECTED = (
    "expected logits (examples, classes) with one label each, or (rows, tokens, classes) with a label for each token"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Places:
    """Where a batch's predictions are made.

    Attributes:
        logits: (places, classes), as the model gave them.
        labels: (places,) classes; None where the batch has no labels.
        rows: (places,) the row of the batch that each belongs to.
        num_rows: of the batch, those without a place too.
        unit: "example" or "token".
    """

    logits: Tensor
    labels: Tensor | None
    rows: Tensor
    num_rows: int
    unit: str


class PlaceReader(Reader):
    """Reads where a model predicts, and what, batch after batch."""

    def places(self, batch: Any, index: int) -> Places:
        """One forward pass of a batch.

        Raises:
            ValueError: a batch that is no dict; a model of regression, of several labels, or without logits of classes;
                labels that are no class of the model; logits that are not finite.
        """
        if not isinstance(batch, Mapping):
            raise ValueError(
                f"Predictions need batches that are dicts of the model's inputs; got {type(batch).__name__}. Name the "
                "tensors as the model's forward does."
            )
        labels = labels_of(batch, (*LABEL_NAMES, *label_names_of(self.model)))
        self._require_one_class(labels, index)
        with known_indices(index):
            outputs = self.model(**batch)
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
        if logits is None and isinstance(outputs, (tuple, list)):
            found = [t for t in outputs if isinstance(t, Tensor) and t.ndim > 1 and t.is_floating_point()]
            logits = found[0] if found else None
        if not isinstance(logits, Tensor) or logits.ndim not in (2, 3):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(outputs).__name__
            raise ValueError(
                f"{type(self.base).__name__} predicts no classes that can be averaged: {EXPECTED}; got {shape}. Take a "
                "classifier, a token classifier or a language model, or average what it gives under perturbed()."
            )
        if logits.ndim == 2 and logits.shape[1] == 1:
            raise self._regression()
        if labels is not None:
            labels = labels.to(logits.device)
        places = self._of_examples(logits, labels) if logits.ndim == 2 else self._of_tokens(outputs, batch, labels)
        if places is None:
            raise ValueError(
                f"Batch {index} has logits {tuple(logits.shape)} and labels {tuple(labels.shape)}, which do not belong "
                f"together: {EXPECTED}. Check how the batch was made."
            )
        self._require_classes(places, index)
        return places

    def _regression(self) -> ValueError:
        return ValueError(
            f"{type(self.base).__name__} is a regression model, whose predictions have no probabilities: expected a "
            "model of classes. For the mean and the spread of its outputs, call it under "
            "hf_pacgen.perturbed(model, scale, seed=...) for several seeds."
        )

    def _require_one_class(self, labels: Any, index: int) -> None:
        kind = getattr(self.config, "problem_type", None)
        if kind == "regression" or (
            getattr(self.config, "num_labels", None) == 1 and "Classif" in str(type(self.base))
        ):
            raise self._regression()
        if kind == "multi_label_classification" or (isinstance(labels, Tensor) and labels.is_floating_point()):
            what = "several labels that hold or not" if kind else f"labels of type {labels.dtype}"
            raise ValueError(
                f"Batch {index} has {what}: expected one class for each example or token, as a whole number. "
                "Probabilities of several labels at once are not averaged here; average the model's sigmoids under "
                "hf_pacgen.perturbed()."
            )
        if labels is not None and not isinstance(labels, Tensor):
            raise ValueError(
                f"Batch {index} has labels of type {type(labels).__name__}: expected a tensor of classes. "
                "Leave the labels out to predict without metrics."
            )
        # on a GPU the model's own loss would end the process
        classes = getattr(self.config, "num_labels", None) or 0
        if classes > 1 and isinstance(labels, Tensor) and "Classification" in type(self.base).__name__:
            _require_known(labels, classes, index)

    def _of_examples(self, logits: Tensor, labels: Tensor | None) -> Places | None:
        rows = torch.arange(len(logits))
        if labels is None:
            return Places(logits=logits, labels=None, rows=rows, num_rows=len(rows), unit="example")
        if labels.ndim != 1 or len(labels) != len(logits):
            return None
        counted = counted_labels(labels)
        logits, rows = logits[counted], rows[counted.cpu()]
        return Places(logits=logits, labels=labels[counted], rows=rows, num_rows=len(counted), unit="example")

    def _of_tokens(self, outputs: Any, batch: Mapping[str, Any], labels: Tensor | None) -> Places | None:
        logits = outputs["logits"] if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
        logits = next(t for t in outputs if isinstance(t, Tensor) and t.ndim > 1) if logits is None else logits
        if labels is None:
            # of a text without labels, what comes after each of its tokens
            mask = batch.get("attention_mask")
            fits = isinstance(mask, Tensor) and mask.shape == logits.shape[:2]
            counted = mask.bool() if fits else torch.ones(logits.shape[:2]).bool()  # type: ignore[union-attr]
            pair, known = (logits, None), counted.to(logits.device)
        else:
            kind = self._kind(outputs, logits, labels)
            found = None if kind is None or labels.ndim != 2 else aligned(logits, labels, kind.facts or 0)
            if found is None:
                return None
            ignored = () if self._entropy is None else self._entropy.ignored
            pair, known = found, counted_labels(found[1], ignored)  # type: ignore[assignment]
        rows = known.nonzero()[:, 0].cpu()
        chosen = None if pair[1] is None else pair[1][known]
        return Places(logits=pair[0][known], labels=chosen, rows=rows, num_rows=count_examples(batch), unit="token")

    def _require_classes(self, places: Places, index: int) -> None:
        if places.labels is not None:
            _require_known(places.labels, places.logits.shape[1], index)
        if not bool(places.logits.isfinite().all()):
            raise ValueError(
                f"Batch {index} has logits that are not finite: expected numbers. If they are without noise, too, the "
                "model is broken; else lower noise_scale."
            )


def _require_known(labels: Tensor, classes: int, index: int) -> None:
    strange = labels[((labels < 0) & (labels != IGNORED)) | (labels >= classes)]
    if strange.numel():
        raise ValueError(
            f"Batch {index} has the label {int(strange[0])}, and the model has the classes 0 to {classes - 1}: these "
            "are labels of other data, or numbered in another order. Give data labeled as the training data."
        )
