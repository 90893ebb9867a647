"""What one pass over the held-out examples shows of a model: losses, confidences, and hashes of the inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hf_pacgen.certify.error_rate import ErrorFunction, checked_errors
from hf_pacgen.config.promise import PromiseConfig
from hf_pacgen.data.contents import count_examples
from hf_pacgen.data.losses import is_causal
from hf_pacgen.distributed.processes import send_to_device
from hf_pacgen.maths.bounded_losses import Answers, PromisedLoss
from hf_pacgen.promises.losses import Form, Reader, losses_of, own_mean
from hf_pacgen.promises.overlap import check_names, check_packing, input_fingerprints, input_names
from hf_pacgen.promises.selective import chances_of, confidence_of
from hf_pacgen.promises.visit import Visit, visiting

__all__ = ["Floats", "Seen", "confidences_of", "examined", "prints_of"]

REFERENCE = 10_000
"""Training examples, drawn at random, whose confidences are looked at: more would move no threshold."""
FEW = 10
"""Examples that may all be of one class by chance."""
Floats = NDArray[numpy.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """One model on all held-out examples.

    Attributes:
        losses: one for each independent example, in [0, 1].
        loss: which; None for the user's own.
        binary: whether it is 0 or 1 by its nature, and not by chance.
        form: how examples are labeled; None for the user's own.
        unit: what an independent example is called.
        prints: hashes of the inputs.
        names: what these inputs are called.
        confidences, label_chances, chances: of examples with one class, the largest probability, that of the label, and
            (for sets) those of all classes; None otherwise.
        own_loss: the mean of the model's own loss, as a Trainer's evaluation has it; None without one.
        notes: what was assumed.
    """

    losses: Floats
    loss: PromisedLoss | None
    binary: bool
    form: Form | None
    unit: str
    prints: list[bytes]
    names: frozenset[str] = frozenset()
    confidences: Floats | None = None
    label_chances: Floats | None = None
    chances: Floats | None = None
    own_loss: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of independent examples."""
        return len(self.losses)

    @property
    def accuracy(self) -> float | None:
        """Share of right classes, where that is what was counted."""
        return 1 - float(self.losses.mean()) if self.loss is PromisedLoss.ZERO_ONE and self.form is Form.CLASS else None


@dataclass(frozen=True)
class _Part:
    """What one batch shows."""

    losses: Tensor
    prints: list[bytes]
    confidences: Tensor | None
    label_chances: Tensor | None
    chances: Tensor | None
    own: tuple[float, int] | None
    settled: tuple[Form | None, PromisedLoss | None]
    random: bool
    classes: set[int]


def examined(
    model: nn.Module, error_fn: ErrorFunction | None, data: Any, config: PromiseConfig, options: Mapping[str, Any]
) -> Seen:
    """One pass of a model, or of an error function of it, over the held-out data.

    Raises:
        ValueError: no examples, and what :class:`Reader` and the choice of a loss refuse.
    """
    scope: Any = {"seed": config.seed, "max_examples": config.max_examples}
    with visiting(model, data, stage="promise", **scope, **options) as visit:
        looking = _Looking(visit, config, error_fn)
        parts = visit.each(looking)
        indices = visit.batches.indices
        names = looking.names
    if not any(len(part.losses) for part in parts):
        raise ValueError("The held-out data is empty: expected labeled examples that the model never saw, got none.")
    losses = torch.cat([part.losses for part in parts]).numpy()
    prints = [key for part in parts for key in part.prints]
    form, loss = parts[0].settled
    if any(part.settled != parts[0].settled for part in parts):  # another process may have read another form
        raise ValueError(
            "Some batches have labels of another form than the first. Give every batch labels of one form."
        )
    binary = loss is not None and (loss.facts.binary or (loss.facts.share and form is Form.CLASS))
    notes = list(_notes(parts, len(prints)))
    where = getattr(data, "where", None)  # of examples of which a row may have several, such as windows of a text
    unit = "example" if form is None else form.facts.unit
    if where is not None and indices is not None:
        rows = [where[i][0] for batch in indices for i in batch]
        if len(set(rows)) < len(rows):
            notes.append(f"{len(rows):,} windows are of {len(set(rows)):,} texts, each of which counts once.")
            losses, unit = _by_row(losses, rows, worst=binary), "text"
    owns = [part.own for part in parts]
    known = [own for own in owns if own is not None]
    return Seen(
        losses=losses,
        loss=loss,
        binary=binary,
        form=form,
        unit=unit,
        prints=prints,
        names=names,
        confidences=_joined([part.confidences for part in parts]),
        label_chances=_joined([part.label_chances for part in parts]),
        chances=_joined([part.chances for part in parts]),
        own_loss=sum(v * n for v, n in known) / sum(n for _, n in known) if len(known) == len(owns) else None,
        notes=tuple(notes),
    )


class _Looking:
    """Looks at one batch after the other."""

    def __init__(self, visit: Visit, config: PromiseConfig, error_fn: ErrorFunction | None) -> None:
        self.visit, self.config, self.error_fn, self.reader = visit, config, error_fn, Reader(visit.model)
        self.names: frozenset[str] = frozenset()

    def __call__(self, index: int, batch: Any) -> _Part:
        model = self.visit.model
        if not self.config.assume_independent:
            check_packing(model, batch, index, causal=is_causal(model))
        on_device = send_to_device(batch, self.visit.device)
        prints = input_fingerprints(model, batch)
        self.names |= input_names(model, batch)
        if self.error_fn is not None:
            losses = checked_errors(self.error_fn(model, on_device), count_examples(batch), index)
            return _Part(losses, prints, None, None, None, None, (None, self._declared(losses, index)), False, set())
        outputs = self.reader.outputs(on_device, index)
        form, answers = self.reader.answers(outputs, on_device, index)
        loss = self._loss(form)
        losses = losses_of(answers, loss, form)
        if len(losses) != count_examples(batch):
            raise ValueError(
                f"Batch {index} has {count_examples(batch)} examples and {len(losses)} answers: expected one for each. "
                "Pass error_fn(model, batch) -> one error in [0, 1] for each example."
            )
        random = False
        if index == 0:
            _, again = self.reader.answers(self.reader.outputs(on_device, index), on_device, index)
            random = not torch.equal(losses, losses_of(again, loss, form))
        chances, settled = self._chances(form, answers), (form, loss)
        classes = set(answers.labels[:, 0].tolist()) if form is Form.CLASS else set()
        return _Part(losses, prints, *chances, own_mean(outputs, batch), settled, random, classes)

    def _loss(self, form: Form) -> PromisedLoss:
        if self.config.loss is not None:
            return self.config.loss
        if self.reader.generates:
            raise ValueError(
                f"{type(self.reader.base).__name__} writes text, and nobody but you knows which text is an error: pass "
                "loss='token_error' (the share of tokens that it does not predict, given the right ones before) or "
                "'exact_match' (not all of them), or error_fn(model, batch) that judges what the model writes."
            )
        return form.facts.loss

    def _declared(self, losses: Tensor, index: int) -> PromisedLoss | None:
        # that errors are 0 or 1 must be known beforehand: a bound that is chosen by the errors seen is not valid
        if self.config.loss is None:
            return None
        if not self.config.loss.facts.binary:
            raise ValueError(
                f"loss={self.config.loss.value!r} and error_fn are two losses: give one of them. loss='zero_one' says "
                "that error_fn is 0 or 1."
            )
        if bad := losses[(losses != 0) & (losses != 1)].tolist():
            raise ValueError(
                f"With loss={self.config.loss.value!r}, error_fn must return 0 or 1; batch {index} has {bad[0]:g}. "
                "Leave loss out for errors between."
            )
        return self.config.loss

    def _chances(self, form: Form, answers: Answers) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if self.config.max_error is None and self.config.coverage is None:
            return None, None, None
        if form is not Form.CLASS:
            raise ValueError(
                f"max_error and coverage are of examples with one class, and these have {form.facts.what}. Leave "
                "them out, or judge whole examples with error_fn."
            )
        logits = answers.logits[:, 0].cpu()
        chances = chances_of(logits).double()
        label = chances.gather(-1, answers.labels.cpu()).squeeze(-1)
        return confidence_of(logits), label, chances if self.config.coverage is not None else None


def confidences_of(model: nn.Module, data: Any, config: PromiseConfig, options: Mapping[str, Any]) -> Floats:
    """The confidences of a model in its answers to at most 10,000 examples, whose labels are not looked at."""
    with visiting(model, data, stage="confidences", seed=config.seed, max_examples=REFERENCE, **options) as visit:
        reader = Reader(visit.model)

        def look(index: int, batch: Any) -> Tensor:
            on_device = send_to_device(batch, visit.device)
            _, answers = reader.answers(reader.outputs(on_device, index), on_device, index)
            return confidence_of(answers.logits[:, 0].cpu())

        found = visit.each(look)
    return torch.cat(found).numpy() if found else numpy.empty(0)


def prints_of(
    model: nn.Module, data: Any, config: PromiseConfig, options: Mapping[str, Any], *, names: Collection[str] = ()
) -> set[bytes]:
    """Hashes of the inputs of all examples of some data.

    Raises:
        ValueError: there are none, or none that could be compared with inputs of these ``names``.
    """

    def look(index: int, batch: Any) -> tuple[frozenset[str], list[bytes]]:
        return input_names(visit.model, batch), input_fingerprints(visit.model, batch)

    with visiting(model, data, stage="training data", seed=config.seed, **options) as visit:
        found = visit.each(look)
    prints = {key for _, part in found for key in part}
    for here in dict.fromkeys(here for here, _ in found):
        check_names(names, here)
    if not prints:
        raise ValueError("The training data is empty: expected what the model was trained on, got none.")
    return prints


def _joined(parts: list[Tensor | None]) -> Floats | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if len({part.shape[1:] for part in known}) > 1:  # answers to choose from, of which examples have different numbers
        width = max(part.shape[1] for part in known)
        known = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in known]
    return torch.cat(known).double().numpy()


def _by_row(losses: Floats, rows: list[int], *, worst: bool) -> Floats:
    groups: dict[int, list[float]] = {}
    for row, value in zip(rows, losses.tolist(), strict=True):
        groups.setdefault(row, []).append(value)
    return numpy.array([max(group) if worst else sum(group) / len(group) for group in groups.values()])


def _notes(parts: list[_Part], prints: int) -> list[str]:
    notes = []
    if parts[0].random:
        notes.append(
            "The model draws random numbers in evaluation mode: the promise is of answers that are drawn anew."
        )
    classes = set[int]().union(*(part.classes for part in parts))
    if len(classes) == 1 and prints > FEW:
        notes.append(
            f"All {prints:,} held-out examples have the class {classes.pop()}: the promise is of new ones that are "
            "drawn so, too, and of no others."
        )
    if prints != sum(len(part.losses) for part in parts):
        notes.append("Some inputs are not told apart by example, so copies and overlap may have gone unseen.")
    return notes
