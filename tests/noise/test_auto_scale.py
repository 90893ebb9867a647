"""The size of noise that follows a run: straight lines against numpy, and what runs of known kinds get."""

from __future__ import annotations

import json
import math
import random

import numpy
import pytest

from hf_pacgen.noise.auto_scale import AutoScale, Pass


def line(losses: list[float]) -> Pass:
    found = Pass()
    for loss in losses:
        found.add(loss)
    return found


@pytest.mark.parametrize("count", [3, 4, 19])
def test_a_pass_is_the_straight_line_of_least_squares(count: int) -> None:
    losses = numpy.random.default_rng(count).normal(1.0, 0.3, count)
    x = (numpy.arange(count) + 0.5) / count - 0.5
    (slope, mean), covariance = numpy.polyfit(x, losses, 1, cov="unscaled")
    residuals = losses - mean - slope * x
    variance = covariance[0, 0] * (residuals**2).sum() / (count - 2)
    found = line(losses.tolist())
    assert (found.mean, found.slope, found.variance) == pytest.approx((mean, slope, variance), rel=1e-9)


def test_few_steps_tell_no_slope_or_not_how_sure_it_is() -> None:
    assert (line([2.0]).slope, line([2.0]).variance) == (0.0, math.inf)
    assert (line([2.0, 1.0]).slope, line([2.0, 1.0]).variance) == (-2.0, math.inf)


def factors(losses: list[float], steps: int | None = 20) -> list[float]:
    auto = AutoScale(steps)
    found = []
    for loss in losses:
        found.append(auto.factor)
        auto.hear([loss])
    return found


def learned(passes: int, noise: float = 0.0) -> list[float]:
    """Losses that fall all the time, on no occasion faster than on another."""
    draws = random.Random(0)
    return [math.exp(-0.02 * t) * (1 + noise * draws.gauss(0, 1)) for t in range(20 * passes)]


def remembered(passes: int, noise: float = 0.0) -> list[float]:
    """Losses that fall between passes only."""
    draws = random.Random(1)
    return [math.exp(-0.4 * (t // 20)) * (1 + noise * draws.gauss(0, 1)) for t in range(20 * passes)]


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_what_is_learned_from_others_gets_no_noise_and_what_is_remembered_does(noise: float) -> None:
    # the running loss of 20 steps lags behind a falling one, so the target is below it
    assert max(factors(learned(8, noise))) == 0
    found = factors(remembered(8, noise))
    assert max(found[:40]) == 0 and min(found[100:]) == 1
    assert found[40:60] == sorted(found[40:60]) or noise


def test_the_target_stays_where_only_memory_lowers_the_loss() -> None:
    auto = AutoScale(20)
    auto.hear(remembered(8))
    # without residuals the slopes are certain
    assert auto.target == pytest.approx(1.0) and auto.share == pytest.approx(0.0, abs=1e-9)
    auto = AutoScale(20)
    auto.hear(learned(8))
    assert auto.target == pytest.approx(math.exp(-0.02 * 149.5), rel=0.02) and auto.share == pytest.approx(
        1.0, abs=0.02
    )


def test_the_share_is_that_of_the_formula() -> None:
    draws = random.Random(2)
    losses = [[2 - 0.3 * k + 0.2 * draws.gauss(0, 1) for _ in range(9)] for k in range(4)]
    lines = [line(one) for one in losses]
    auto, target, taught = AutoScale(9), lines[0].mean, math.inf
    auto.hear(losses[0])
    for k in range(1, 4):
        auto.hear(losses[k])
        weights = [0.5 ** (k - j) for j in range(1, k + 1)]
        fallen = [lines[j - 1].mean - lines[j].mean for j in range(1, k + 1)]
        slopes = [-(lines[j - 1].slope + lines[j].slope) / 2 for j in range(1, k + 1)]
        errors = [(lines[j - 1].variance + lines[j].variance) / 4 for j in range(1, k + 1)]
        d, s = (sum(w * v for w, v in zip(weights, values, strict=True)) for values in (fallen, slopes))
        v = sum(w * w * e for w, e in zip(weights, errors, strict=True))
        expected = min(1, 0.6 * taught / fallen[-1]) if fallen[-1] > 0 else 1
        share = (s * d / v + expected * 16) / (d * d / v + 16)
        target -= max(fallen[-1], 0) * min(1, max(0, share))
        learned = max(fallen[-1], 0) * min(1, max(0, share))
        taught = max(learned, 0.6 * taught) if math.isfinite(taught) else learned
        assert auto.share == pytest.approx(min(1, max(0, share))) and auto.target == pytest.approx(target)


def test_the_unit_of_the_loss_does_not_matter() -> None:
    losses = remembered(3, 0.1) + learned(3, 0.1)
    assert factors([7 * loss for loss in losses]) == pytest.approx(factors(losses))
    assert 0 < max(factors(losses)) <= 1


def test_without_passes_there_is_no_noise() -> None:
    assert max(factors(remembered(8), None)) == 0
    assert max(factors([-1.0] * 30 + [-2.0] * 30)) == 0  # nor where losses are below 0


def test_passes_of_a_step_or_two() -> None:
    for steps in (1, 2):
        found = factors([math.exp(-0.1 * t) for t in range(60)], steps)
        assert found[: 2 * steps] == [0.0] * 2 * steps and found[-1] == 1.0


def test_losses_that_are_no_numbers_change_nothing_for_good() -> None:
    losses = remembered(6, 0.05)
    broken = [math.nan if t in (0, 33) else math.inf if t == 50 else loss for t, loss in enumerate(losses)]
    assert factors(broken)[-1] == pytest.approx(factors(losses)[-1], abs=0.02)


@pytest.mark.parametrize("steps", [1, 2, 20, None])
def test_a_state_goes_on_exactly(steps: int | None) -> None:
    losses = remembered(6, 0.1)
    whole = AutoScale(steps)
    whole.hear(losses)
    for cut in (0, 1, 20, 57):
        first, second = AutoScale(steps), AutoScale(steps)
        first.hear(losses[:cut])
        second.load_state(json.loads(json.dumps(first.state(), allow_nan=False)))
        second.hear(losses[cut:])
        assert second.state() == whole.state() and second.factor == whole.factor


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="A pass has at least one optimizer step; got 0"):
        AutoScale(0)
    with pytest.raises(ValueError, match=r"follows passes of 3 optimizer steps, and a pass of this run has 4\. Re"):
        AutoScale(4).load_state(AutoScale(3).state())
