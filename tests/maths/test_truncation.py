"""A truncated normal against its printed formulas with 50 digits, and at the seam of its two forms."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch import Tensor

from hf_pacgen.maths.truncation import FAR, SERIES_TERMS, entropy, ratio, second_moment


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def with_50_digits(scale: float, half_width: float) -> tuple[float, float]:
    """(E u², entropy) from the formulas as printed."""
    with mpmath.workdps(50):
        s, box = mpmath.mpf(scale), mpmath.mpf(half_width)
        a = box / s
        z = mpmath.erf(a / mpmath.sqrt(2))
        moment = s**2 * (1 - 2 * a * mpmath.npdf(a) / z)
        return float(moment), float(mpmath.log(z * s * mpmath.sqrt(2 * mpmath.pi)) + moment / (2 * s**2))


@pytest.mark.parametrize("box", [1.0, 1e-5, 300.0])
@pytest.mark.parametrize("a", [1e-12, 1e-6, 0.01, 0.5, 1 - 1e-9, 1.0, 1 + 1e-9, 2.0, 8.0, 38.0, 41.0, 1e8])
def test_all_digits_hold(a: float, box: float) -> None:
    moment, nats = with_50_digits(box / a, box)
    assert second_moment(t(box / a), t(box)).item() == pytest.approx(moment, rel=3e-15, abs=0)
    assert entropy(t(box / a), t(box)).item() == pytest.approx(nats, rel=3e-15, abs=3e-15)


def test_both_forms_agree_where_they_meet() -> None:
    below, above = t(math.nextafter(1.0, 0.0)), t(1.0)
    for function in (second_moment, entropy):
        assert function(t(1.0), below).item() == pytest.approx(function(t(1.0), above).item(), rel=1e-15)


def test_wide_and_narrow_boxes_are_the_normal_and_the_uniform() -> None:
    s, box = t(0.3), t(0.7)
    assert second_moment(s, t(1e300)).item() == s.square().item()
    assert entropy(s, t(1e300)).item() == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.09), rel=1e-15)
    assert second_moment(t(1e300), box).item() == pytest.approx(0.49 / 3, rel=1e-15)
    assert entropy(t(1e300), box).item() == pytest.approx(math.log(1.4), rel=1e-15)


def test_the_moment_grows_with_both_and_stays_below_both_limits() -> None:
    grid = torch.logspace(-6, 6, 241, dtype=torch.float64)
    for moments, limit in (
        (second_moment(grid, t(1.0)), grid.square().clamp(max=1 / 3)),
        (second_moment(t(1.0), grid), (grid.square() / 3).clamp(max=1)),
    ):
        assert bool((moments.diff() >= 0).all()) and bool((moments <= limit * (1 + 1e-15)).all())


def test_no_noise_and_no_box() -> None:
    zero, one = t(0.0), t(1.0)
    assert ratio(zero, one).item() == math.inf and ratio(one, zero).item() == 0
    for scale, box in ((zero, one), (one, zero), (zero, zero)):
        assert second_moment(scale, box).item() == 0
        assert entropy(scale, box).item() == -math.inf


def test_shapes_broadcast_and_gradients_are_those_of_differences() -> None:
    scales, boxes = t(0.2, 1.0, 5.0)[:, None], t(0.5, 3.0)
    assert second_moment(scales, boxes).shape == entropy(scales, boxes).shape == (3, 2)
    for function in (second_moment, entropy):
        assert torch.autograd.gradcheck(function, (t(0.2, 0.9, 5.0).requires_grad_(), t(0.5, 1.4, 3.0)))


def test_the_constants_are_as_small_and_as_large_as_they_must_be() -> None:
    """The first term left out of the series is below rounding, and the density at FAR is 0."""
    double_factorial = math.prod(range(1, 2 * SERIES_TERMS + 2, 2))
    assert 1 / double_factorial < 2.0**-53 / 2
    assert math.exp(-FAR * FAR / 2) < 1e-300 and second_moment(t(1.0), t(FAR)).item() == 1
