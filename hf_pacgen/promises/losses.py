"""From a model's outputs to the losses that are promised: one in [0, 1] for every independent example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from hf_pacgen.certify.error_rate import OWN_ERROR
from hf_pacgen.data.contents import LABEL_NAMES, count_examples, labels_of
from hf_pacgen.data.losses import IGNORED, LossKind, aligned, counted_labels, is_causal, known_indices
from hf_pacgen.data.own_loss import label_names_of
from hf_pacgen.data.recognition import CrossEntropy, recognize
from hf_pacgen.facts import Choice
from hf_pacgen.maths.bounded_losses import Answers, PromisedLoss
from hf_pacgen.model.state import base_model

__all__ = ["Form", "Reader", "losses_of"]

ENDS = ("start_positions", "end_positions")
ALIGNED = ("TOKEN_CLASSIFICATION", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ")
"""Kinds of models of transformers whose logits stand where the labels do."""
PER_PLACE = {name for kind in ALIGNED for name in getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES").values()}


@dataclass(frozen=True)
class FormFacts:
    """What the labels of an example are.

    Attributes:
        loss: what is promised where nobody says.
        unit: what an independent example is called.
        what: the labels in words.
    """

    loss: PromisedLoss
    unit: str
    what: str


class Form(Choice):
    """How an example is labeled."""

    facts: FormFacts

    CLASS = "class", FormFacts(PromisedLoss.ZERO_ONE, "example", "one class")
    TOKENS = "tokens", FormFacts(PromisedLoss.TOKEN_ERROR, "sequence", "a label for each token")
    SEVERAL = "several", FormFacts(PromisedLoss.EXACT_MATCH, "example", "several labels that hold or not")
    SPAN = "span", FormFacts(PromisedLoss.EXACT_MATCH, "example", "the two ends of an answer")


class Reader:
    """Reads answers out of a model's outputs, batch after batch, in the form that the first batch has."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.form = model, None
        self.base: Any = base_model(model)
        self.config: Any = getattr(model, "config", None)
        self._entropy: CrossEntropy | None = None

    form: Form | None
    """How the examples are labeled, once a batch was read."""

    @property
    def generates(self) -> bool:
        """Whether the model writes text token by token."""
        can = getattr(self.base, "can_generate", None)
        return is_causal(self.model) or bool(callable(can) and can())

    def outputs(self, batch: Any, index: int) -> Any:
        """The model's outputs on a batch.

        Raises:
            ValueError: a batch that is no dict, or with labels that the model has no class for.
        """
        if not isinstance(batch, Mapping):
            raise ValueError(
                f"A promise needs batches that are dicts of the model's inputs, with labels; got "
                f"{type(batch).__name__}. {OWN_ERROR}"
            )
        labels, classes = labels_of(batch), getattr(self.config, "num_labels", None) or 0
        # of answers to choose from, the number of labels of the configuration says nothing
        named = classes > 1 and "Classification" in type(self.base).__name__
        if named and isinstance(labels, Tensor) and labels.ndim == 1:
            _require_classes(labels, classes, index)  # on a GPU the model's own loss would end the process
        with known_indices(index):
            return self.model(**batch)

    def answers(self, outputs: Any, batch: Mapping[str, Any], index: int) -> tuple[Form, Answers]:
        """How a batch's examples are labeled, what the outputs say, and what they should.

        Raises:
            ValueError: no labels, regression, outputs and labels that do not belong together, an example without any
                label, other labels than the model's classes, another form than that of the first batch.
        """
        form, answers = self._read(outputs, batch, index)
        if self.form not in (None, form):
            raise ValueError(
                f"Batch {index} has {form.facts.what} for an example, and the batches before had "
                f"{self.form.facts.what}. Give every batch labels of one form."  # type: ignore[union-attr]
            )
        self.form = form
        classes = answers.logits.shape[-1]
        _require_classes(answers.labels[answers.counted], classes, index)
        if not bool(answers.counted.any(1).all()):
            raise ValueError(
                f"Batch {index} has an example without a label: all of its labels are {IGNORED}, or it has a single "
                "token. Every example counts in a promise; leave such examples out of the data beforehand."
            )
        return form, answers

    def _read(self, outputs: Any, batch: Mapping[str, Any], index: int) -> tuple[Form, Answers]:
        if all(isinstance(batch.get(name), Tensor) for name in ENDS) and _get(outputs, "start_logits") is not None:
            return Form.SPAN, _span(outputs, batch)
        labels, logits = labels_of(batch, (*LABEL_NAMES, *label_names_of(self.model))), _logits(outputs)
        if labels is None:
            raise ValueError(
                f"Batch {index} has no labels: expected one of {', '.join(LABEL_NAMES)}; the batch has "
                f"{sorted(map(str, batch))}. Held-out examples need their labels."
            )
        if isinstance(logits, Tensor) and isinstance(labels, Tensor):
            labels = labels.to(logits.device)
            if self._several(logits, labels):
                return Form.SEVERAL, _several(logits, labels)
            if labels.is_floating_point() or (logits.ndim == 2 and logits.shape[1] == 1):
                raise ValueError(
                    f"{type(self.base).__name__} is a regression model (logits {tuple(logits.shape)}, labels "
                    f"{tuple(labels.shape)}), and its loss has no upper end, without which nothing can be promised. "
                    "Pass error_fn(model, batch) -> one error in [0, 1] for each example, such as whether it is off by "
                    "more than you tolerate."
                )
            if labels.ndim == 1 and logits.ndim == 2 and len(labels) == len(logits):
                return Form.CLASS, self._classes(logits, labels, batch)
            if labels.ndim == 2 and logits.ndim == 3 and (found := self._tokens(outputs, logits, labels)):
                return Form.TOKENS, found
        shapes = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in (logits, labels)]
        raise ValueError(
            f"Batch {index} has no errors that can be counted: expected logits (examples, classes) and integer labels "
            f"(examples), or (examples, tokens, classes) and (examples, tokens); got {shapes[0]} and {shapes[1]}. "
            f"{OWN_ERROR}"
        )

    def _several(self, logits: Tensor, labels: Tensor) -> bool:
        if getattr(self.config, "problem_type", None) == "regression" or logits.shape != labels.shape:
            return False
        # logits of a class each have the shape of labels that are probabilities, too: of those few are 0 or 1
        return labels.ndim == 2 and labels.shape[1] > 1 and bool(((labels == 0) | (labels == 1)).all())

    def _classes(self, logits: Tensor, labels: Tensor, batch: Mapping[str, Any]) -> Answers:
        mask = batch.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 3 and mask.shape[:2] == logits.shape:
            # an answer that was only added to fill the batch up is none to choose
            empty = ~mask.bool().any(-1).to(logits.device)
            logits = logits.masked_fill(empty, torch.finfo(logits.dtype).min)
        return Answers(logits=logits[:, None], labels=labels[:, None], counted=(labels != IGNORED)[:, None])

    def _tokens(self, outputs: Any, logits: Tensor, labels: Tensor) -> Answers | None:
        if (kind := self._kind(outputs, logits, labels)) is None:
            return None
        ignored = () if self._entropy is None else self._entropy.ignored
        pair = aligned(logits, labels, kind.facts or 0)
        if pair is None:
            return None
        known: Any = getattr(self.config, "id2label", None) or {}
        names = {str(name): int(number) for number, name in known.items()}
        return Answers(logits=pair[0], labels=pair[1], counted=counted_labels(pair[1], ignored), nothing=names.get("O"))

    def _kind(self, outputs: Any, logits: Tensor, labels: Tensor) -> LossKind | None:
        """Which logits predict which labels: by the model's own loss, by its class; None where neither tells."""
        if self._entropy is not None:
            return self._entropy.kind
        loss = _get(outputs, "loss")
        if isinstance(loss, Tensor) and loss.numel() == 1 and bool(loss.isfinite()):
            self._entropy = recognize(loss, logits, labels, causal=is_causal(self.model), again=lambda _: None)
        if self._entropy is not None:
            return self._entropy.kind
        if is_causal(self.model):
            return LossKind.CAUSAL
        return LossKind.ALIGNED if type(self.base).__name__ in PER_PLACE else None


def losses_of(answers: Answers, loss: PromisedLoss, form: Form) -> Tensor:
    """The losses of some answers, float64 on the CPU, (examples,).

    Raises:
        ValueError: a loss that examples of this form do not have.
    """
    facts = loss.facts
    if facts.single and form is not Form.CLASS:
        raise ValueError(
            f"loss={loss.value!r} is of examples with one class, and these have {form.facts.what}: take "
            f"'{PromisedLoss.EXACT_MATCH.value}' (all of them right) or '{PromisedLoss.TOKEN_ERROR.value}' (the share "
            "of wrong ones)."
        )
    if facts.classes and not answers.spans and answers.nothing is None:
        raise ValueError(
            f"loss={loss.value!r} needs a class that means 'nothing': labels that hold or not, the ends of an answer, "
            f"or tags of which one is called 'O' in the model's id2label; these examples have {form.facts.what}. "
            f"{OWN_ERROR}"
        )
    return facts.of(answers).detach().double().cpu()


def _span(outputs: Any, batch: Mapping[str, Any]) -> Answers:
    logits = torch.stack([_get(outputs, "start_logits"), _get(outputs, "end_logits")], dim=1)
    labels = torch.stack([batch[name].reshape(-1) for name in ENDS], dim=1).to(logits.device)
    # transformers ignores ends beyond the text; an answer that was cut off cannot be right
    inside = labels.clamp(0, logits.shape[-1] - 1)
    outside = (inside != labels).any(1)
    logits = logits.masked_fill(outside[:, None, None], torch.nan)
    return Answers(logits=logits, labels=inside, counted=torch.ones_like(inside).bool(), spans=True)


def _several(logits: Tensor, labels: Tensor) -> Answers:
    # the sigmoid of z is the softmax of (0, z); zeros_like would turn what is not finite into a number
    pairs = torch.stack([torch.zeros_like(logits), logits], dim=-1)
    return Answers(logits=pairs, labels=labels.long(), counted=torch.ones_like(labels).bool(), nothing=0)


def _logits(outputs: Any) -> Tensor | None:
    logits = _get(outputs, "logits")
    if logits is None and isinstance(outputs, (tuple, list)):
        found = [t for t in outputs if isinstance(t, Tensor) and t.ndim > 1 and t.is_floating_point()]
        logits = found[0] if found else None
    return logits if isinstance(logits, Tensor) and logits.is_floating_point() else None


def _get(outputs: Any, name: str) -> Any:
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)


def _require_classes(labels: Tensor, classes: int, index: int) -> None:
    strange = labels[((labels < 0) & (labels != IGNORED)) | (labels >= classes)]
    if not labels.is_floating_point() and strange.numel():
        raise ValueError(
            f"Batch {index} has the label {int(strange[0])}, and the model has the classes 0 to {classes - 1}: these "
            "are labels of other data, or numbered in another order. Give held-out data labeled as the training data."
        )


def own_mean(outputs: Any, batch: Any) -> tuple[float, int] | None:
    """The model's own loss of a batch and its examples, as a Trainer's evaluation averages it; None without one."""
    loss = _get(outputs, "loss")
    return (float(loss), count_examples(batch)) if isinstance(loss, Tensor) and loss.numel() == 1 else None
