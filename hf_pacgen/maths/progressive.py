"""Bounds for models that learn from each block of examples after having been tested on it: no model in sight, float64.

Model b makes k_b errors on block b, n_b examples that no earlier step has used; then it may be trained on them in any
way.  Bounded is p̄ = Σ_b n_b p_b/n, p_b the true error of model b: the error of one of the models, drawn with the
probabilities n_b/n.  Given the past, k_b is Bin(n_b, p_b), but k = Σ k_b is not Bin(n, p̄): the errors so far decide
what is learned.  Whoever wants the bound to fail would make the next model good or bad by them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy
from numpy.typing import NDArray

from hf_pacgen.maths.binary_kl import kl_inverse_upper
from hf_pacgen.maths.held_out_bounds import check_counts, check_delta

__all__ = ["chernoff_bound", "game_bound", "progressive_tilt", "worst_case"]

Array = NDArray[numpy.float64]

RANGE, TAPER, HIGHEST = (0.45, 2.0), 0.5, 0.6
"""Around the expected number of errors: where the game's limits apply, how fast they widen (in log k), and the share
of all examples at which they end."""
FALLBACK_SHARE = 0.05
"""Share of δ for the Chernoff bound, which counts where the number of errors is far from what was expected."""
FINE, CELLS = 300, (400, 800)
"""Cells of the grid of error rates in the game, up to so many examples and above."""
HAIR = 1e-9
"""By which sums of rates may differ that are equal but for rounding."""
ROUNDING = 2e-4
"""More than the relative error of its sums, which are of float32."""
MOST_PLAYED = 1_200
"""Examples in all blocks up to which the game is solved; above it would take minutes."""


def progressive_tilt(expected_error: float, examples: int, delta: float) -> float:
    """The λ at which :func:`chernoff_bound` is tightest if the models err that often on n examples in all.

    e^{-λ} = q(1 - p)/(p(1 - q)) for the error q and p = kl⁻¹(q, log(1/δ)/n).

    >>> 0.1 < progressive_tilt(0.15, 500, 0.05) < 0.5
    True
    """
    check_delta(delta)
    if not 0 <= expected_error <= 1:
        raise ValueError(f"expected_error must be in [0, 1]; got {expected_error}.")
    error = min(max(expected_error, 0.5 / examples), 1 - 0.5 / examples)
    bound = float(kl_inverse_upper(error, math.log(1 / delta) / examples))
    return math.log(bound * (1 - error) / (error * (1 - bound)))


def chernoff_bound(errors: Sequence[int], examples: Sequence[int], delta: float, tilts: Sequence[float]) -> float:
    """The bound by an exponential supermartingale, for any number of examples.

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

    Source: proof in ``docs/theory.md``; the idea is of Cesa-Bianchi and Gentile (NIPS 2005).

    >>> bound = chernoff_bound([0, 0], [50, 50], 0.05, [2.0, 2.0])
    >>> round(bound, 6) == round((1 - math.exp(-math.log(20) / 100)) / (1 - math.exp(-2.0)), 6)
    True
    """
    check_delta(delta)
    if not len(errors) == len(examples) == len(tilts) or not len(errors):
        raise ValueError(
            "errors, examples and tilts must have one value for each block, and at least one block; got "
            f"{len(errors)}, {len(examples)} and {len(tilts)}."
        )
    for wrong, count, tilt in zip(errors, examples, tilts, strict=True):
        check_counts(wrong, count)
        if not (0 < tilt < math.inf):
            raise ValueError(f"tilts must be positive and finite; got {tilt}.")
    sizes, slopes = numpy.asarray(examples, dtype=float), -numpy.expm1(-numpy.asarray(tilts, dtype=float))
    budget = math.log(1 / delta) + float(numpy.dot(tilts, errors))

    def rates(level: float) -> Array:
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


def game_bound(errors: int, blocks: int, block_size: int, delta: float, expected_error: float) -> float:
    """The bound by the worst case of all ways to learn, for blocks of equal size.

    The bound for k errors is an exact binomial one, at a level that is highest at the expected number of errors and
    falls to both sides.  How often it fails at most is computed: an opponent, who knows the errors so far, chooses the
    error p_b of the next model, and wins if Σ n_b p_b/n is above the bound in the end.  The levels are scaled so that
    the best opponent wins with a probability of at most δ (:func:`worst_case`).  Far from the expected number of errors
    the bound is that of :func:`chernoff_bound`, for which a twentieth of δ is set aside.

    At 15 % of 150 errors it is 6.7 points above the frequency, the Chernoff bound 8.0, and the exact bound of a model
    that does not change 5.6.

    Args:
        errors: k, in all blocks.
        blocks, block_size: B and n_b.
        delta: δ in (0, 1).
        expected_error: in (0, 1), guessed before any block was looked at; a bad guess loosens the bound, and never
            makes it false.

    Raises:
        ValueError: an argument out of range.

    Source: proof in ``docs/theory.md``.

    >>> from hf_pacgen.maths.held_out_bounds import exact_error_bound
    >>> exact_error_bound(28, 148, 0.05) < game_bound(28, 4, 37, 0.05, 0.2) < 0.28
    True
    """
    check_delta(delta)
    check_counts(errors, blocks * block_size)
    if not 0 < expected_error < 1:
        raise ValueError(f"expected_error must be in (0, 1); got {expected_error}.")
    # rounded to powers of √2, so that guesses that hardly differ share the solution
    guess = 2 ** (round(2 * math.log2(expected_error)) / 2)
    return float(_limits(blocks, block_size, float(delta), min(guess, 0.9))[errors])


@functools.lru_cache(maxsize=64)
def _limits(blocks: int, block_size: int, delta: float, expected_error: float) -> Array:
    # the bound for each number of errors from 0 to n
    examples = blocks * block_size
    tilt = progressive_tilt(expected_error, examples, FALLBACK_SHARE * delta)
    counts = numpy.arange(examples + 1)
    spent = (tilt * counts + math.log(1 / (FALLBACK_SHARE * delta))) / examples
    fallback = numpy.minimum(1.0, -numpy.expm1(-spent) / -math.expm1(-tilt))
    if examples > MOST_PLAYED:
        raise ValueError(
            f"The game is solved for at most {MOST_PLAYED:,} examples in all blocks; got {examples:,}. Take "
            "chernoff_bound."
        )
    left = (1 - FALLBACK_SHARE) * delta
    level = 0.6 * left  # near what comes out as a rule
    while level > 0.01 * left:
        limits = _curve(examples, expected_error, level)
        failing = worst_case(limits, blocks, block_size)
        if failing <= left:
            # sums that exceed a limit by less than HAIR count as equal in the game
            return numpy.minimum(numpy.minimum(limits + HAIR, fallback), 1.0)
        level *= 0.99 * min(0.97, left / failing)
    return fallback  # so few examples that no level helps


def _curve(examples: int, expected_error: float, level: float) -> Array:
    from scipy.special import betainccinv

    counts, center = numpy.arange(examples + 1), expected_error * examples
    levels = level * numpy.exp(-0.5 * (numpy.log((counts + 0.5) / (center + 0.5)) / TAPER) ** 2)
    high = min(examples - 1, math.ceil(min(HIGHEST * examples, RANGE[1] * center)))
    low = min(int(RANGE[0] * center), high)
    limits = numpy.ones(examples + 1)
    inside = counts[: high + 1]
    limits[inside] = betainccinv(inside + 1, examples - inside, levels[inside])
    limits[:low] = limits[low]
    # more errors never give a smaller bound, on which the solution of the game relies
    return numpy.maximum.accumulate(limits)


def worst_case(limits: Array, blocks: int, block_size: int, cells: int | None = None) -> float:
    """An upper bound on the probability that Σ_b n_b p_b/n exceeds the limit of the number of errors made.

    p_b may be chosen in any way from the errors on the blocks before.  ``limits`` are nondecreasing, one for each
    number of errors from 0 to n.  The game is solved backward, on a grid of rates: a rate between two points counts
    with the errors of the lower one and adds the upper one to the sum, each of which helps the opponent.  So no grid
    gives less than the truth, and a finer one gives less.

    >>> from hf_pacgen.maths.held_out_bounds import exact_error_bound
    >>> limits = numpy.array([exact_error_bound(k, 20, 0.1) if k < 12 else 1.0 for k in range(21)])
    >>> 0.1 < worst_case(limits, 1, 20) < worst_case(limits, 4, 5) < 0.2  # one block: 0.1, but for the grid
    True
    """
    from scipy.special import bdtr

    failing = limits < 1  # a sum of rates never exceeds n
    if not failing.any():
        return 0.0
    count = int(numpy.flatnonzero(failing).max()) + 1  # more errors than that never fail
    cells = CELLS[blocks * block_size > FINE] if cells is None else cells
    step = block_size / cells
    places = math.ceil(limits[:count].max() * blocks * block_size / step) + 2
    sums = numpy.arange(places) * step
    # the chance to win, by errors so far and by the sum of the rates so far; sums that equal a limit do not fail
    wins = (sums[None, :] > limits[:count, None] * blocks * block_size + HAIR).astype(numpy.float32)
    errors = numpy.arange(count)
    later = errors[None, :] - errors[:, None]
    for block in range(blocks - 1, -1, -1):
        best = numpy.zeros(places if block == 0 else wins.shape, dtype=numpy.float32)
        for cell in range(min(cells, places - 1)):
            tail = bdtr(numpy.minimum(errors, block_size).astype(float), block_size, cell / cells)
            chances = numpy.diff(tail, prepend=0.0).astype(numpy.float32)
            ahead = cell + 1
            if block == 0:  # nothing has happened yet
                best[0] = max(best[0], float(chances @ wins[:, min(ahead, places - 1)]))
                continue
            moved = numpy.concatenate([wins[:, ahead:], numpy.repeat(wins[:, -1:], ahead, axis=1)], axis=1)
            moves = numpy.where(later >= 0, chances[numpy.maximum(later, 0)], numpy.float32(0))
            numpy.maximum(best, moves @ moved, out=best)
        wins = best
    return float(wins.max()) * (1 + ROUNDING)
