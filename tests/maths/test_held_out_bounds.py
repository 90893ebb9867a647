"""Bounds from held-out examples: exact, and by betting."""

import math

import numpy
import pytest
from scipy import stats

from hf_pacgen.maths.held_out_bounds import (
    betting_bound,
    binomial_tail,
    exact_error_bound,
)

DRAWS, DELTA = 400, 0.2
MOST = DELTA + 2 * math.sqrt(DELTA * (1 - DELTA) / DRAWS)


@pytest.mark.parametrize(("errors", "examples"), [(0, 1), (1, 1), (0, 500), (27, 904), (450, 500), (3, 100_000)])
@pytest.mark.parametrize("delta", [0.5, 0.05, 1e-9])
def test_the_exact_bound_is_where_the_binomial_tail_is_delta(errors: int, examples: int, delta: float) -> None:
    bound = exact_error_bound(errors, examples, delta)
    if errors == examples:
        assert bound == 1
        return
    assert bound == pytest.approx(stats.beta.isf(delta, errors + 1, examples - errors), rel=1e-9)
    assert binomial_tail(errors, examples, bound) == pytest.approx(delta, rel=1e-9)
    assert stats.binom.cdf(errors, examples, bound) == pytest.approx(delta, rel=1e-6)


def test_a_tail_of_nothing_is_one() -> None:
    assert binomial_tail(0, 0, 0.3) == binomial_tail(5, 5, 0.3) == 1


LOSSES = {
    "often 0": lambda rng, n: rng.beta(0.1, 2, n),
    "spread": lambda rng, n: rng.beta(2, 5, n),
    "constant": lambda rng, n: numpy.full(n, 0.3),
    "rarely 1": lambda rng, n: (rng.random(n) < 0.02).astype(float),
    "often 1": lambda rng, n: (rng.random(n) < 0.9).astype(float),
    "sorted-looking": lambda rng, n: numpy.where(rng.random(n) < 0.5, 0.05, rng.random(n)),
}
MEANS = {
    "often 0": 0.1 / 2.1,
    "spread": 2 / 7,
    "constant": 0.3,
    "rarely 1": 0.02,
    "often 1": 0.9,
    "sorted-looking": 0.275,
}


@pytest.mark.parametrize("name", LOSSES)
def test_bets_are_lost_no_more_often_than_promised(name: str) -> None:
    rng = numpy.random.default_rng(1)
    failed = sum(betting_bound(LOSSES[name](rng, 60), DELTA) < MEANS[name] - 1e-9 for _ in range(DRAWS))
    assert failed / DRAWS <= MOST


def test_bets_follow_the_variance() -> None:
    rng = numpy.random.default_rng(2)
    losses = rng.beta(2, 8, 2000)
    excess = betting_bound(losses, 0.05) - losses.mean()
    normal = stats.norm.isf(0.05) * losses.std() / math.sqrt(len(losses))
    assert normal < excess < 1.8 * normal  # 2.3 for an exact bound of as many 0s and 1s
    others = [betting_bound(rng.permutation(losses), 0.05) - losses.mean() for _ in range(5)]
    assert max(others) < 1.1 * min(others)
    assert betting_bound(numpy.zeros(100), 0.05) < 1.3 * exact_error_bound(0, 100, 0.05)
    assert betting_bound([1.0] * 5, 0.05) == 1


def test_a_bet_is_what_its_definition_says() -> None:
    # the wealth at the bound, computed loss after loss
    losses, delta = [0.1, 0.7, 0.2, 0.0], 0.3
    bound = betting_bound(losses, delta)
    rng, total = numpy.random.default_rng(0), 0.0
    for i in range(16):
        wealth, seen = 1.0, list[float]()
        for loss in (losses[j] for j in rng.permutation(4)):
            spread = 0.25
            for t in range(len(seen)):
                spread += (seen[t] - (0.5 + sum(seen[: t + 1])) / (t + 2)) ** 2
            size = math.sqrt(2 * math.log(1 / delta) / (4 * spread / (len(seen) + 1)))
            wealth *= 1 + min(size, (0.5, 0.95)[i % 2] / (1 - bound)) * (bound - loss)
            seen.append(loss)
        total += wealth / 16
    assert total == pytest.approx(1 / delta, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact_error_bound(1, 0, 0.05), r"examples must be a whole number of at least 1; got 0\."),
        (lambda: exact_error_bound(3, 2, 0.05), r"errors must be a whole number in \[0, 2\], the examples; got 3\."),
        (
            lambda: exact_error_bound(0.5, 2, 0.05),  # type: ignore[arg-type]
            r"errors must be a whole number",
        ),
        (lambda: exact_error_bound(0, 2, 1.0), r"delta must be in \(0, 1\), the probability that the bound fails"),
        (lambda: exact_error_bound(0, 2, math.nan), r"delta must be in \(0, 1\)"),
        (lambda: binomial_tail(0, 2, 1.5), r"rate must be in \[0, 1\]; got 1\.5\."),
        (lambda: betting_bound([], 0.05), r"A bound needs at least one loss; got none\."),
        (lambda: betting_bound([0.5, 1.5], 0.05), r"losses must be in \[0, 1\]; got 1\.5\. Clip and rescale"),
        (lambda: betting_bound([math.nan], 0.05), r"losses must be in \[0, 1\]; got nan\."),
    ],
)
def test_bad_arguments(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
