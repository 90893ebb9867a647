"""Bounds on the risk of models that never saw the examples they are tested on: no prior, no noise, float64.

Every bound is one-sided and holds with probability at least 1 - δ over the draw of independent examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
from numpy.typing import NDArray

from hf_pacgen.maths.binary_kl import kl_inverse_upper

__all__ = ["betting_bound", "binomial_tail", "exact_error_bound", "progressive_bound", "progressive_tilt"]

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

    errors, examples, delta = _counts(errors, examples, delta)
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
    errors, examples, _ = _counts(errors, examples, 0.5)
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
    _check_delta(delta)
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
        if high - low < 1e-12:
            break
    return high


def _bet_sizes(losses: NDArray[numpy.float64], log_inverse_delta: float) -> NDArray[numpy.float64]:
    # λ_t of every example, which only what came before it may decide; it is cut off where m is known
    seen = numpy.arange(1, len(losses) + 1)
    means = (0.5 + losses.cumsum()) / (seen + 1)
    variances = (0.25 + ((losses - means) ** 2).cumsum()) / (seen + 1)
    before = numpy.concatenate([[0.25], variances[:-1]])
    return numpy.sqrt(2 * log_inverse_delta / (len(losses) * before))


def progressive_tilt(expected_error: float, examples: int, delta: float) -> float:
    """The λ at which :func:`progressive_bound` is tightest if the models err that often on n examples in all.

    e^{-λ} = q(1 - p)/(p(1 - q)) for the error q and p = kl⁻¹(q, log(1/δ)/n).

    >>> 0.1 < progressive_tilt(0.15, 500, 0.05) < 0.5
    True
    """
    _check_delta(delta)
    if not 0 <= expected_error <= 1:
        raise ValueError(f"expected_error must be in [0, 1]; got {expected_error}.")
    error = min(max(expected_error, 0.5 / examples), 1 - 0.5 / examples)
    bound = float(kl_inverse_upper(error, math.log(1 / delta) / examples))
    return math.log(bound * (1 - error) / (error * (1 - bound)))


def progressive_bound(errors: Sequence[int], examples: Sequence[int], delta: float, tilts: Sequence[float]) -> float:
    """A bound on the average error of models that learn from each block after having been tested on it.

    Model b is tested on block b, n_b examples that no earlier step has used, and makes k_b errors there; then it may be
    trained on them in any way.  The bound is on Σ_b n_b p_b/n, p_b the true error of model b: that is the error of one
    of the models, drawn with the probabilities n_b/n.

    Given all that came before, E exp(-λ_b k_b) (1 - c_b p_b)^{-n_b} = 1 with c_b = 1 - e^{-λ_b}, if λ_b was chosen
    before block b was looked at.  So the product over the blocks exceeds 1/δ with probability at most δ (Markov), and
    the bound is the largest average for which it does not: p_b = 1/c_b - μ, cut off at 0 and 1.  With one λ it is
    (1 - exp(-(λk + log(1/δ))/n))/(1 - e^{-λ}).

    Args:
        errors, examples: k_b and n_b, block after block.
        delta: δ in (0, 1).
        tilts: λ_b > 0 of every block, such as :func:`progressive_tilt` of the error on the blocks before.

    Raises:
        ValueError: an argument out of range, or lists of different lengths.

    Source: Cesa-Bianchi and Gentile (NIPS 2005) for the idea; proof in ``docs/theory.md``.

    >>> bound = progressive_bound([0, 0], [50, 50], 0.05, [2.0, 2.0])
    >>> round(bound, 6) == round((1 - math.exp(-math.log(20) / 100)) / (1 - math.exp(-2.0)), 6)
    True
    """
    _check_delta(delta)
    if not len(errors) == len(examples) == len(tilts) or not len(errors):
        raise ValueError(
            "errors, examples and tilts must have one value for each block, and at least one block; got "
            f"{len(errors)}, {len(examples)} and {len(tilts)}."
        )
    for wrong, count, tilt in zip(errors, examples, tilts, strict=True):
        _counts(wrong, count, delta)
        if not (0 < tilt < math.inf):
            raise ValueError(f"tilts must be positive and finite; got {tilt}.")
    sizes, slopes = numpy.asarray(examples, dtype=float), -numpy.expm1(-numpy.asarray(tilts, dtype=float))
    budget = math.log(1 / delta) + float(numpy.dot(tilts, errors))

    def rates(level: float) -> NDArray[numpy.float64]:
        return numpy.clip(1 / slopes - level, 0, 1)

    def spent(level: float) -> float:
        # where λ is so large that c rounds to 1, a rate of 1 costs more than any budget
        with numpy.errstate(divide="ignore"):
            return float(-(sizes * numpy.log1p(-slopes * rates(level))).sum())

    low, high = float((1 / slopes).min()) - 1, float((1 / slopes).max())  # all rates are 1, and all are 0
    if spent(low) <= budget:
        return 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if spent(middle) <= budget else (middle, high)
    return min(1.0, float(numpy.dot(sizes, rates(low)) / sizes.sum()))


def _counts(errors: int, examples: int, delta: float) -> tuple[int, int, float]:
    _check_delta(delta)
    if int(examples) != examples or examples < 1:
        raise ValueError(f"examples must be a whole number of at least 1; got {examples}.")
    if int(errors) != errors or not 0 <= errors <= examples:
        raise ValueError(f"errors must be a whole number in [0, {int(examples)}], the examples; got {errors}.")
    return int(errors), int(examples), float(delta)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), the probability that the bound fails; got {delta}.")
