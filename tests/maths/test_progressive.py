"""Bounds for models that learn from each block after their test: the game against its brute-force solution."""

import functools
import math
from collections.abc import Callable

import numpy
import pytest
from scipy import optimize, stats

from hf_pacgen.maths.held_out_bounds import exact_error_bound
from hf_pacgen.maths.progressive import chernoff_bound, game_bound, progressive_tilt, worst_case

DRAWS, DELTA = 400, 0.2
MOST = DELTA + 2 * math.sqrt(DELTA * (1 - DELTA) / DRAWS)


def test_chernoff_with_one_tilt_has_the_closed_form() -> None:
    tilt, errors, sizes = 0.7, [3, 5, 1], [50, 40, 30]
    want = (1 - math.exp(-(tilt * 9 + math.log(1 / 0.05)) / 120)) / (1 - math.exp(-tilt))
    assert chernoff_bound(errors, sizes, 0.05, [tilt] * 3) == pytest.approx(want, rel=1e-9)
    assert chernoff_bound([500], [500], 0.05, [tilt]) == 1
    assert chernoff_bound([0, 0], [5, 5], 0.05, [800.0, 800.0]) == pytest.approx(1 - 0.05**0.1)


def test_chernoff_finds_the_worst_average() -> None:
    errors, sizes, tilts, delta = [6, 2, 0], numpy.array([40.0, 60.0, 20.0]), numpy.array([0.3, 0.9, 2.0]), 0.1
    slopes, budget = 1 - numpy.exp(-tilts), math.log(1 / delta) + float(tilts @ errors)
    found = optimize.minimize(
        lambda rates: -(sizes @ rates) / sizes.sum(),
        numpy.full(3, 0.05),
        bounds=[(0, 1)] * 3,
        constraints={"type": "ineq", "fun": lambda rates: budget + sizes @ numpy.log1p(-slopes * rates)},
    )
    assert chernoff_bound(errors, [40, 60, 20], delta, list(tilts)) == pytest.approx(-found.fun, rel=1e-5)


def played(limits: numpy.ndarray, blocks: int, size: int, rates: list[tuple[float, float]]) -> float:
    """How often an opponent wins who chooses among (rate of the errors, what it adds), through every course."""
    chances = [stats.binom.pmf(numpy.arange(size + 1), size, rate) for rate, _ in rates]

    @functools.cache
    def wins(block: int, errors: int, total: float) -> float:
        if block == blocks:
            return float(total / blocks > limits[errors] + 1e-9)
        return max(
            sum(
                float(chance) * wins(block + 1, errors + more, round(total + adds, 9))
                for more, chance in enumerate(one)
                if chance > 0
            )
            for one, (_, adds) in zip(chances, rates, strict=True)
        )

    return wins(0, 0, 0.0)


@pytest.mark.parametrize(("blocks", "size"), [(1, 12), (2, 6), (3, 4)])
def test_the_game_is_solved_from_above(blocks: int, size: int) -> None:
    limits = numpy.array([exact_error_bound(k, blocks * size, 0.1) for k in range(blocks * size + 1)])
    limits[blocks * size * 3 // 4 :] = 1
    cells = 24
    helped = [(cell / cells, (cell + 1) / cells) for cell in range(cells)]
    found = worst_case(limits, blocks, size, cells=cells)
    assert found == pytest.approx(played(limits, blocks, size, helped), rel=1e-3)
    fine = worst_case(limits, blocks, size, cells=40 * cells)
    assert played(limits, blocks, size, [(rate, rate) for rate, _ in helped]) < fine < found
    if blocks == 1:
        assert 0.1 <= fine < 0.102  # the exact bound of one model
    else:
        assert fine > 0.12  # the exact bound does not hold for models that learn from their errors


def test_limits_that_never_fail() -> None:
    assert worst_case(numpy.ones(9), 2, 4) == 0


Opponent = Callable[[int, int, int], float]
OPPONENTS: dict[str, Opponent] = {
    "always the same": lambda block, errors, seen: 0.2,
    "better as it learns": lambda block, errors, seen: 0.3 / (1 + block),
    "stops when lucky": lambda block, errors, seen: 0.0 if block and errors < 0.15 * seen else 0.22,
    "plays high when unlucky": lambda block, errors, seen: 0.5 if block and errors > 0.25 * seen else 0.2,
    "plays high when lucky": lambda block, errors, seen: 0.5 if block and errors < 0.15 * seen else 0.15,
}


@pytest.mark.parametrize("guess", [0.05, 0.2])
@pytest.mark.parametrize("name", OPPONENTS)
def test_no_opponent_wins_more_often_than_promised(name: str, guess: float) -> None:
    rng, blocks, size, game, chernoff = numpy.random.default_rng(3), 4, 30, 0, 0
    tilt_of = functools.cache(progressive_tilt)
    for _ in range(DRAWS):
        errors: list[int] = []
        rates: list[float] = []
        tilts: list[float] = []
        for block in range(blocks):
            rates.append(OPPONENTS[name](block, sum(errors), size * block))
            tilts.append(tilt_of((8 * guess + sum(errors)) / (8 + size * block), size * blocks, DELTA))
            errors.append(int(rng.binomial(size, rates[-1])))
        mean = float(numpy.mean(rates))
        game += game_bound(sum(errors), blocks, size, DELTA, guess) < mean
        chernoff += chernoff_bound(errors, [size] * blocks, DELTA, tilts) < mean
    assert game / DRAWS <= MOST
    assert chernoff / DRAWS <= MOST
    if name == "always the same" and guess == 0.2:
        assert game / DRAWS >= DELTA / 4 > chernoff / DRAWS  # which is what the game gains


def test_the_game_gains_over_chernoff_and_pays_a_little_over_the_exact_bound() -> None:
    exact, tilt = exact_error_bound(30, 200, 0.05), progressive_tilt(0.15, 200, 0.05)
    game, chernoff = game_bound(30, 4, 50, 0.05, 0.15), chernoff_bound([30], [200], 0.05, [tilt])
    assert exact < game < 0.15 + 1.35 * (exact - 0.15) < chernoff
    # a guess that is wrong by factors loosens the bound
    for guess in (0.02, 0.05, 0.4, 0.9):
        assert game < game_bound(30, 4, 50, 0.05, guess) < 0.35
    assert game_bound(200, 4, 50, 0.05, 0.15) == 1
    found = [game_bound(k, 4, 50, 0.05, 0.15) for k in range(201)]
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: progressive_tilt(1.5, 10, 0.05), r"expected_error must be in \[0, 1\]; got 1\.5\."),
        (lambda: chernoff_bound([], [], 0.05, []), r"one value for each block, and at least one block; got 0, 0"),
        (lambda: chernoff_bound([1], [2], 0.05, [0.0]), r"tilts must be positive and finite; got 0\.0\."),
        (lambda: game_bound(1, 4, 10, 1.0, 0.1), r"delta must be in \(0, 1\)"),
        (lambda: game_bound(41, 4, 10, 0.1, 0.1), r"errors must be a whole number in \[0, 40\]"),
        (lambda: game_bound(1, 4, 10, 0.1, 0.0), r"expected_error must be in \(0, 1\); got 0\.0\."),
        (lambda: game_bound(1, 4, 1000, 0.1, 0.1), r"solved for at most 1,200 examples in all blocks; got 4,000"),
    ],
)
def test_bad_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
