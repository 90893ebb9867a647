"""Losses in [0, 1] of a model's answers, one number for every independent example.

Nothing here imports torch: results, which are read without it, ask here what a promise is about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_pacgen.facts import Choice

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Answers", "LossFacts", "PromisedLoss"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What a model answered to some examples, and what it should have.

    Attributes:
        logits: (examples, places, classes), one place for every label of an example.
        labels: (examples, places), a class each.
        counted: (examples, places), which labels count; at least one of every example.
        nothing: the class that stands for "nothing here", by which F1 tells what was found; None where there is none.
        spans: whether the two places are the first and the last token of an answer.
    """

    logits: Tensor
    labels: Tensor
    counted: Tensor
    nothing: int | None = None
    spans: bool = False

    @property
    def chosen(self) -> Tensor:
        """The classes of the largest logits, (examples, places)."""
        return self.logits.argmax(-1)

    @property
    def broken(self) -> Tensor:
        """Where a logit is no finite number, (examples, places): such an answer is wrong, whatever it says."""
        return ~self.logits.isfinite().all(-1)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the labels of each example that count, (examples,)."""
        return (values.double() * self.counted).sum(1) / self.counted.sum(1)


def _wrong(answers: Answers) -> Tensor:
    return ((answers.chosen != answers.labels) | answers.broken) & answers.counted


def _share_wrong(answers: Answers) -> Tensor:
    return answers.mean(_wrong(answers))


def _any_wrong(answers: Answers) -> Tensor:
    return _wrong(answers).any(1).double()


def _brier(answers: Answers) -> Tensor:
    logits = answers.logits if answers.logits.element_size() > 4 else answers.logits.float()
    chances = logits.softmax(-1)
    true = chances.gather(-1, answers.labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    # Σ_c (p_c - [c = y])²/2, whose largest value is 1
    scores = (chances.square().sum(-1) - 2 * true + 1) / 2
    return answers.mean(scores.masked_fill(answers.broken, 1.0).clamp(0, 1))


def _one_minus_f1(answers: Answers) -> Tensor:
    chosen, labels = answers.chosen, answers.labels
    if answers.spans:  # tokens from the first to the last; an answer that ends before it begins has none
        (first, last), (start, end) = chosen.unbind(1), labels.unbind(1)
        found, wanted = (last - first + 1).clamp(min=0), end - start + 1
        right = (last.minimum(end) - first.maximum(start) + 1).clamp(min=0).minimum(found)
        lost = answers.broken.any(1)
    else:
        nothing = -1 if answers.nothing is None else answers.nothing  # then every class says something
        is_found, is_wanted = chosen.ne(nothing) & answers.counted, labels.ne(nothing) & answers.counted
        right = (is_found & (chosen == labels)).sum(1)
        found, wanted = is_found.sum(1), is_wanted.sum(1)
        lost = (answers.broken & answers.counted).any(1)
    # nothing to be found, and nothing found, is right
    f1 = (2 * right.double() / (found + wanted).clamp(min=1)).masked_fill((found + wanted) == 0, 1.0)
    return (1 - f1).masked_fill(lost, 1.0)


@dataclass(frozen=True, kw_only=True)
class LossFacts:
    """What a loss is.

    Attributes:
        of: the losses of some answers, float64, (examples,).
        says: what a bound on it promises; ``{}`` is the bound, ``{unit}`` an example.
        binary: whether it is 0 or 1, so that errors are counted and their bound is exact.
        share: whether it is the share of an example's labels that is wrong, which is 0 or 1 of a single one.
        single: whether it is of examples with one label alone.
        classes: whether one of the classes has to mean "nothing".
    """

    of: Callable[[Answers], Tensor]
    says: str
    binary: bool = False
    share: bool = False
    single: bool = False
    classes: bool = False


class PromisedLoss(Choice):
    """A loss in [0, 1] of one example.

    ``zero_one``: whether the class of the largest logit is another than the label.
    ``exact_match``: whether any label of the example is missed (of a question, either end of the answer).
    ``token_error``: the share of an example's labels that is missed; each token sees the right ones before it.
    ``brier``: Σ_c (p_c - [c = y])²/2 of the softmax p, averaged over the labels of an example.
    ``f1``: 1 - F1 of what an example has beside "nothing" (the class "O", a label that does not hold, or tokens of an
    answer); 0 where nothing was to be found and nothing was.
    """

    facts: LossFacts

    ZERO_ONE = (
        "zero_one",
        LossFacts(of=_any_wrong, says="errs on at most {} of new {unit}s", binary=True, single=True),
    )
    EXACT_MATCH = (
        "exact_match",
        LossFacts(of=_any_wrong, says="gets at most {} of new {unit}s not wholly right", binary=True),
    )
    TOKEN_ERROR = (
        "token_error",
        LossFacts(
            of=_share_wrong,
            says="errs on at most {} of the labels of a new {unit}, on average over {unit}s",
            share=True,
        ),
    )
    BRIER = "brier", LossFacts(of=_brier, says="has a mean halved Brier score of at most {} on new {unit}s")
    F1 = "f1", LossFacts(of=_one_minus_f1, says="has a mean 1 - F1 of at most {} on new {unit}s", classes=True)
