"""Slopes are the derivative of the loss, and those on drawn targets give its second derivative."""

from __future__ import annotations

import pytest
import torch

from hf_pacgen.maths.likelihoods import Likelihood


@pytest.mark.parametrize("likelihood", Likelihood)
def test_slopes_and_draws(likelihood: Likelihood) -> None:
    facts, generator = likelihood.facts, torch.Generator().manual_seed(0)
    z = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    y = facts.draw(z, generator)
    slope = torch.func.grad(lambda z: facts.loss(z, y, 0.0).sum())(z)
    assert torch.allclose(slope, facts.slope(z, y))
    second = torch.func.hessian(lambda z: facts.loss(z, y, 0.0).sum())(z).view(3, 3)
    many = z.expand(20_000, 3)
    slopes = facts.slope(many, facts.draw(many, generator))
    assert torch.allclose(slopes.T @ slopes / len(many), second, atol=0.02)
