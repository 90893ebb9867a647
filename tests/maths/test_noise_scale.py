"""Noise levels: limits, and the optimum they claim to be."""

from __future__ import annotations

import math

import pytest
import torch

from hf_pacgen.maths.noise_scale import article_noise_scale, optimal_noise_scale


def bound(sigma: torch.Tensor, w: torch.Tensor, h: torch.Tensor, rho: float, eta: float) -> torch.Tensor:
    """Σ σ²(H/6 + ρ√m N/18) + KL/η per weight, up to a constant."""
    box = 0.1 * w.abs() + 0.1
    return sigma.square() * (h / 6 + rho * math.sqrt(w.numel()) * box / 18) - sigma.log() / eta


@pytest.mark.parametrize("rho", [0.0, 2.0])
def test_the_optimum_is_one(rho: float) -> None:
    generator = torch.Generator().manual_seed(0)
    w, h = (torch.randn(500, generator=generator, dtype=torch.float64) for _ in range(2))
    eta = 300.0
    sigma = optimal_noise_scale(w, h, rho, eta=eta, num_parameters=500)
    box = 0.1 * w.abs() + 0.1
    value = bound(sigma, w, h, rho, eta)
    assert (sigma <= box).all() and (sigma < box).any() and (sigma == box).any()
    for factor in (0.9, 0.99, 1.01, 1.1):
        other = torch.minimum(sigma * factor, box)
        assert (bound(other, w, h, rho, eta) >= value - 1e-12).all()


def test_limits() -> None:
    w = torch.tensor([0.0, 1.0, -2.0])
    box = 0.1 * w.abs() + 0.1
    for h in (torch.zeros(3), torch.full((3,), -5.0)):
        torch.testing.assert_close(optimal_noise_scale(w, h, 0.0, eta=10.0, num_parameters=3), box)
        torch.testing.assert_close(article_noise_scale(w, h, 0.0, scale=1.0), box)
    assert not optimal_noise_scale(w, torch.ones(3), 0.0, eta=10.0, num_parameters=3, scale=0.0).any()
    assert not article_noise_scale(w, torch.zeros(3), 0.0, scale=0.0).any()


@pytest.mark.parametrize("peak", [None, 4.0, 1e-9])
def test_memory_to_work_in_and_a_known_peak_change_nothing(peak: float | None) -> None:
    w, h = torch.linspace(-2, 2, 9), torch.linspace(-1, 1, 9) * (4.0 if peak is None else peak)
    expected = optimal_noise_scale(w, h, 0.1, eta=200.0, num_parameters=9)
    found = optimal_noise_scale(
        w, h, 0.1, eta=200.0, num_parameters=9, buffers=(torch.empty(9), torch.empty(9)), peak=peak
    )
    assert found.equal(expected)


def test_low_precision_is_widened() -> None:
    sigma = optimal_noise_scale(torch.ones(2).bfloat16(), torch.ones(2), 0.0, eta=3e4, num_parameters=2)
    assert sigma.dtype == torch.float32 and sigma.tolist() == pytest.approx([0.01, 0.01])
