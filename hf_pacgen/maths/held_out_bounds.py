"""Bounds on the risk of models that never saw the examples they are tested on: no prior, no noise, float64.

Every bound is one-sided and holds with probability at least 1 - δ over the draw of independent examples.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import numpy
from numpy.typing import NDArray

__all__ = ["betting_bound", "binomial_tail", "check_counts", "check_delta", "exact_error_bound"]

ORDERS = 16
"""Orders of the examples over which the wealth of a bet is averaged."""
STAKES = (0.5, 0.95)
"""How much of the wealth a bet may lose at most; the orders take turns."""


def exact_error_bound(errors: int, examples: int, delta: float) -> float:
    """The largest error rate p at which so few errors still have the probability δ: P(Bin(n, p) ≤ k) = δ.

    Exact for independent examples (Clopper-Pearson): the 1 - δ quantile of Beta(k + 1, n - k), and 1 for k = n.

    Args:
        errors, examples: k and n, whole numbers with 0 ≤ k ≤ n and n ≥ 1.
        delta: δ in (0, 1).

    Raises:
        ValueError: an argument out of range.

    Source: Clopper and Pearson (Biometrika 1934); as a test-set bound, Langford (JMLR 2005).

    >>> round(exact_error_bound(0, 100, 0.05), 6) == round(1 - 0.05 ** 0.01, 6)
    True
    """
    from scipy.special import betainccinv  # loading it takes a while, and only bounds need it

    delta = check_delta(delta)
    errors, examples = check_counts(errors, examples)
    return 1.0 if errors == examples else float(betainccinv(errors + 1, examples - errors, delta))


def binomial_tail(errors: int, examples: int, rate: float) -> float:
    """P(Bin(n, p) ≤ k): how probable it is that a model of error rate p makes at most so many errors.

    ``errors`` and ``examples`` as in :func:`exact_error_bound`, though n = 0 has the tail 1; ``rate`` in [0, 1].

    >>> round(binomial_tail(0, 10, 0.1), 12) == round(0.9 ** 10, 12)
    True
    """
    from scipy.special import betaincc

    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1]; got {rate}.")
    if examples == errors == 0:
        return 1.0
    errors, examples = check_counts(errors, examples)
    return 1.0 if errors == examples else float(betaincc(errors + 1, examples - errors, rate))


def betting_bound(losses: Sequence[float] | NDArray[numpy.float64], delta: float) -> float:
    """An upper bound on the mean of independent losses in [0, 1], by betting against every mean above it.

    Whoever bets on losses below m multiplies their wealth by 1 + λ_t(m - X_t) at every example.  If m is the true mean,
    the expected wealth stays 1, so that it reaches 1/δ with probability at most δ (Markov).  The bound is the smallest
    m at which the wealth, averaged over 16 fixed orders of the examples, reaches 1/δ.  λ_t = sqrt(2 log(1/δ)/(n v))
    follows the variance v of the losses before, and loses at most half of the wealth at once, or 95 % in every other
    order.  It is about as wide as the variance of the losses allows, and 1.5 times as wide as the exact bound where
    they are all 0 or 1: take :func:`exact_error_bound` there.

    Args:
        losses: one for each independent example, in [0, 1]; another order changes the bound by a few parts in a hundred
            of its distance from the mean.
        delta: δ in (0, 1).

    Raises:
        ValueError: no losses, losses outside [0, 1] or not finite, δ outside (0, 1).

    Source: Waudby-Smith and Ramdas, *Estimating means of bounded random variables by betting* (JRSS-B 2024).

    >>> betting_bound([0.2] * 1000, 0.05) < 0.204
    True
    """
    values = numpy.asarray(losses, dtype=numpy.float64).reshape(-1)
    check_delta(delta)
    if not len(values):
        raise ValueError("A bound needs at least one loss; got none.")
    if bad := values[~((values >= 0) & (values <= 1))].tolist():
        raise ValueError(f"losses must be in [0, 1]; got {bad[0]:g}. Clip and rescale the loss, or use the 0-1 error.")
    least, rng = math.log(1 / delta), numpy.random.default_rng(0)
    # the orders may not depend on the losses: those of sorted losses would not be independent draws
    bets = [(values[rng.permutation(len(values))], STAKES[i % len(STAKES)]) for i in range(ORDERS)]
    plans = [(ordered, stake, _bet_sizes(ordered, least)) for ordered, stake in bets]

    def log_wealth(mean: float) -> float:
        gains = [
            float(numpy.log1p(numpy.minimum(sizes, stake / (1 - mean)) * (mean - ordered)).sum())
            for ordered, stake, sizes in plans
        ]
        return float(numpy.logaddexp.reduce(gains)) - math.log(len(gains))

    # every factor grows with m, so the means that are not refuted are an interval
    low, high = float(values.mean()), 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if log_wealth(middle) >= least else (middle, high)
        if high - low < 1e-9:  # the upper end: a bound is never too small
            break
    return high


def _bet_sizes(losses: NDArray[numpy.float64], log_inverse_delta: float) -> NDArray[numpy.float64]:
    # λ_t of every example, which only what came before it may decide; it is cut off where m is known
    seen = numpy.arange(1, len(losses) + 1)
    means = (0.5 + losses.cumsum()) / (seen + 1)
    variances = (0.25 + ((losses - means) ** 2).cumsum()) / (seen + 1)
    before = numpy.concatenate([[0.25], variances[:-1]])
    return numpy.sqrt(2 * log_inverse_delta / (len(losses) * before))


def check_counts(errors: int, examples: int) -> tuple[int, int]:
    """Whole numbers of errors and of examples, of which there are at least as many and one."""
    if int(examples) != examples or examples < 1:
        raise ValueError(f"examples must be a whole number of at least 1; got {examples}.")
    if int(errors) != errors or not 0 <= errors <= examples:
        raise ValueError(f"errors must be a whole number in [0, {int(examples)}], the examples; got {errors}.")
    return int(errors), int(examples)


def check_delta(delta: float) -> float:
    """δ in (0, 1)."""
    if isinstance(delta, bool) or not isinstance(delta, numbers.Real) or not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), the probability that the bound fails; got {delta!r}.")
    return float(delta)
