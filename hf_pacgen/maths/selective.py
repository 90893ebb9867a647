"""Thresholds with a guarantee, from held-out examples: when to abstain, and how large a set of labels has to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from hf_pacgen.maths.held_out_bounds import binomial_tail

__all__ = ["STEPS", "Step", "fewest_examples", "first_coverage", "fixed_sequence", "set_threshold", "thresholds_at"]

STEPS = 20
"""Coverages that are tried, 0.05, 0.10, …, 1."""

Numbers = Sequence[float] | NDArray[numpy.float64]


@dataclass(frozen=True)
class Step:
    """A threshold that was tested.

    Attributes:
        coverage: the share of the reference's examples that lie at or above the threshold.
        threshold: least confidence at which an example is answered.
        answered, errors: of the held-out examples.
        tail: P(Bin(answered, t) ≤ errors), by which it passes or not.
    """

    coverage: float
    threshold: float
    answered: int
    errors: int
    tail: float


def thresholds_at(confidences: Numbers, steps: int = STEPS) -> list[float]:
    """The confidences that the share i/steps of some examples reaches, i = 1, …, steps; NaN is the least of all.

    >>> thresholds_at([0.9, 0.5, 0.8, 0.7], steps=2)
    [0.8, 0.5]
    """
    values = numpy.asarray(confidences, dtype=numpy.float64)
    ordered = numpy.sort(values[~numpy.isnan(values)])[::-1]
    if not len(ordered):
        raise ValueError("Thresholds are made of confidences, and there are none. Give training data with examples.")
    # ⌈n i/steps⌉ by whole numbers: in binary, 0.15 of 20 is a little more than 3
    return [float(ordered[-(-len(ordered) * i // steps) - 1]) for i in range(1, steps + 1)]


def first_coverage(examples: int, target: float, delta: float, steps: int = STEPS) -> int | None:
    """The first i with (i/steps) m ≥ 2 log δ/log(1 - t): below, hardly any errors could pass.  None where none is."""
    needed = fewest_examples(target, delta)
    return next((i for i in range(1, steps + 1) if examples * i / steps >= needed - 1e-9), None)


def fewest_examples(target: float, delta: float) -> float:
    """2 log δ/log(1 - t): twice the examples that pass without an error."""
    return 2 * math.log(delta) / math.log1p(-target)


def fixed_sequence(
    thresholds: Sequence[float], confidences: Numbers, wrong: Numbers, *, target: float, delta: float, start: int = 1
) -> tuple[Step | None, list[Step]]:
    """The last of a sequence of thresholds at which the error of what is answered is still promised to be at most t.

    The thresholds are tested in their order, which was fixed beforehand, and the first that fails ends it: so each is
    tested at the whole δ.  A threshold passes where P(Bin(N, t) ≤ errors) ≤ δ for the N held-out examples at or above
    it.  If the error above a threshold is larger than t, that has at most the probability δ; the first such one fails
    with 1 - δ, and all after it are never reached.

    Args:
        thresholds: of decreasing size; those before the number ``start``, counted from 1, are left out.
        confidences, wrong: of the held-out examples; wrong is 0 or 1.
        target: t in (0, 1).

    Returns:
        The step that is promised, None where the first one fails; and all that were tested.

    Source: Geifman and El-Yaniv (NIPS 2017) with fixed-sequence testing in place of their union, as in Angelopoulos,
    Bates, Candès, Jordan, Lei (*Learn then Test*, 2021).
    """
    levels, errors = numpy.asarray(confidences, dtype=numpy.float64), numpy.asarray(wrong, dtype=numpy.float64)
    passed, tested = None, []
    for i, threshold in enumerate(thresholds, start=1):
        if i < start:
            continue
        answered = levels >= threshold
        count, missed = int(answered.sum()), int(errors[answered].sum())
        step = Step(i / len(thresholds), threshold, count, missed, binomial_tail(missed, count, target))
        tested.append(step)
        if step.tail > delta:
            break
        passed = step
    return passed, tested


def set_threshold(chances: Numbers, *, coverage: float, delta: float) -> float | None:
    """The probability from which on a class belongs into the set, so that sets hold the label with that coverage.

    With probability ≥ 1 - δ over the held-out examples, a new label has at least this probability with probability at
    least ``coverage``: it is the (k+1)-th smallest of the labels' probabilities, k the most with P(Bin(n, 1 - coverage)
    ≤ k) ≤ δ.  None where even k = 0 is too many: n < log δ/log(coverage).

    Source: Vovk (ACML 2012), Park, Bastani, Matni, Lee (*PAC confidence sets*, ICLR 2020).
    """
    ordered = numpy.sort(numpy.asarray(chances, dtype=numpy.float64))
    low, high = -1, len(ordered)  # the tail at low is at most δ, at high it is 1
    while high - low > 1:
        middle = (low + high) // 2
        passes = binomial_tail(middle, len(ordered), 1 - coverage) <= delta
        low, high = (middle, high) if passes else (low, middle)
    return None if low < 0 else float(ordered[low])
