"""What :func:`hf_pacgen.promise` promises, as a result that is printed, saved and read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hf_pacgen.errors import InputError
from hf_pacgen.maths.bounded_losses import PromisedLoss
from hf_pacgen.results.base import Result
from hf_pacgen.results.certificate import rounded_up
from hf_pacgen.results.fields import measured, origin, other

ABSTAIN, SETS = "abstain", "sets"
"""The rules that a threshold belongs to: abstain below it, or put all classes from it on into a set."""
OWN_LOSS = "has a mean error (by its own error function) of at most {} on new {unit}s"
BREAKS = (
    "It does not hold if these {unit}s trained or chose the model, if they depend on each other, or if the new ones "
    "come from another distribution."
)


@dataclass(frozen=True, kw_only=True)
class Promise(Result):
    """What may be promised of a model, from examples that it never saw.

    With probability at least 1 - δ over the draw of the n independent held-out examples, the expected loss of the
    deterministic model on a new example of the same distribution is at most ``error_bound``, and where a threshold was
    asked for, what ``statement`` says of it holds too.
    """

    kind, remake, derived = "promise", "Promise again", ("statement",)

    error_bound: float = measured("bound", better="lower", span="[0, 1]", says="on the expected loss of a new example")
    mean_loss: float = other("mean loss on the held-out examples")
    num_errors: int | None = other("how many of them are wrong; None where the loss is not 0 or 1", default=None)
    num_examples: int = other("number of independent held-out examples; sequences, where these have several labels")
    delta: float = other("δ, for all that is promised together")
    share: float = other("the δ of each single bound: one part for each of the promises, and for each candidate")
    method: str = other("how the error is bounded, in words")
    loss: str = other("name of the loss; 'error_fn' for one of your own", default="zero_one")
    unit: str = other("'example' or 'sequence'", default="example")
    num_candidates: int = other("how many candidates were compared on these examples, and paid for", default=1)
    subject: str = other("what the promise is of, in words", default="the model")
    rule: str | None = other(
        "what the threshold is for: 'abstain' below it, or 'sets' of all classes from it on; None without",
        default=None,
    )
    threshold: float | None = other(
        "the least confidence, or probability; None where none can be promised", default=None
    )
    target: float | None = other(
        "what was asked for: the most errors among answers, or the sets' coverage", default=None
    )
    coverage: float | None = other(
        "share of the held-out examples that is answered, or whose set holds the label", default=None
    )
    coverage_bound: float | None = other("what is promised of the coverage, at least", default=None)
    answered: int | None = other("held-out examples that are answered, or by which the sets were judged", default=None)
    answered_errors: int | None = other("how many of these are wrong", default=None)
    set_size: float | None = other("mean number of classes in a set, on the held-out examples", default=None)
    curve: dict[str, dict[str, float]] = other(
        "by the coverage in the reference: the threshold that was tried, the held-out examples answered, the errors "
        "among them, and the tail that decides",
        default=dict,
    )
    broken_by: str = other("what would break the promise, in a sentence; by default that of one model", default="")
    notes: tuple[str, ...] = other("what was taken for granted, in sentences", default=())
    seconds: float = other("wall-clock time", default=0.0)
    config: dict[str, Any] = other("the settings", default=dict)
    origin: dict[str, Any] = origin()

    def __post_init__(self) -> None:
        if self.rule not in (None, ABSTAIN, SETS):
            raise InputError(
                f"The promise's rule must be {ABSTAIN!r}, {SETS!r} or null; got {self.rule!r}. Promise again, or "
                "install the release that wrote it."
            )

    @property
    def statement(self) -> str:
        """What is promised, of which model, on draws like which data, with what confidence, and what would break it."""
        given = f"With probability ≥ {confidence(self.delta)} over the draw of the {self.num_examples:,} held-out"
        claims = [*self._rule(), self._error()]
        return f"{given} {self.unit}s{self._data()}, {self._model()} {', and '.join(claims)}.{self._made()} " + (
            self.broken_by or BREAKS.format(unit=self.unit)
        )

    def _error(self) -> str:
        says = PromisedLoss(self.loss).facts.says if self.loss in set(PromisedLoss) else OWN_LOSS
        if self.error_bound >= 1:
            return f"is promised nothing about its error on new {self.unit}s"
        shown = says.replace("{}", rounded_up(self.error_bound)).replace("{unit}", self.unit)
        return shown + {None: "", ABSTAIN: " if it answers all", SETS: " by its likeliest class"}[self.rule]

    def _rule(self) -> list[str]:
        if self.rule is None:
            return []
        target = f"{1e2 * (self.target or 0):.4g} %"
        if self.rule == ABSTAIN:
            if self.threshold is None:
                return [f"has no confidence from which on at most {target} of its answers would be wrong"]
            answers = f"answers at least {rounded_down(self.coverage_bound or 0)} of new {self.unit}s"
            return [f"with confidence ≥ {self.threshold:.6g} {answers}", f"errs on at most {target} of those"]
        size = f" (on average {self.set_size:.2f})" if self.set_size is not None else ""
        return [
            f"gives sets of the classes of probability ≥ {self.threshold or 0:.6g}{size} that hold the label of at "
            f"least {target} of new {self.unit}s"
        ]

    def _model(self) -> str:
        model = self.origin.get("model") or {}
        name = f" {model['name']}" if model.get("name") else ""
        weights = f" (weights {model['weights'][:8]})" if model.get("weights") else ""
        return f"{self.subject}{name}{weights}"

    def _data(self) -> str:
        name = (self.origin.get("data") or {}).get("name")
        names = ", ".join(map(str, name)) if isinstance(name, (list, tuple)) else name
        return f" of {names}" if names else ""

    def _made(self) -> str:
        found = f" It made {self.num_errors:,} errors on them" if self.num_errors is not None else ""
        found = found or f" Its mean loss on them is {self.mean_loss:.4g}"
        paid = f"; {self.num_candidates} candidates are paid for" if self.num_candidates > 1 else ""
        return f"{found} ({self.method}{paid})."


def confidence(delta: float) -> str:
    """1 - δ in percent, never larger than it is."""
    # 1e-6: in binary, 1e4 (1 - δ) may fall just short of the whole number that it is
    return f"{math.floor(1e4 * (1 - delta) + 1e-6) / 100:g} %"


def rounded_down(share: float) -> str:
    """A share in percent, never larger than it is."""
    return f"{math.floor(1e3 * share + 1e-9) / 10:g} %"
