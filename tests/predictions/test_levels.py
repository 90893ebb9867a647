"""Noise in proportion to each row, or of another shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hf_pacgen import NoiseConfig
from hf_pacgen.config import NoiseShape
from hf_pacgen.predictions.levels import Noise, noise_of, row_levels


def test_a_row_is_what_makes_one_output() -> None:
    kernel = torch.arange(1.0, 25.0).view(2, 3, 2, 2)
    sigma = row_levels(kernel, scale=0.5)
    assert sigma.shape == kernel.shape and sigma.unique().numel() == 2
    torch.testing.assert_close(sigma[1, 0, 0, 0], 0.5 * kernel[1].square().mean().sqrt())
    torch.testing.assert_close(row_levels(torch.tensor([3.0, 4.0]), scale=1.0), torch.full((2,), 12.5**0.5))
    assert (
        row_levels(torch.tensor(2.0), scale=0.5).item() == 1
        and row_levels(kernel.bfloat16(), scale=1).dtype == torch.float32
    )


def test_levels_are_those_of_the_trainable_weights() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with Noise(0.1).on(model, seed=0):
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"1.weight", "1.bias"}
    config = NoiseConfig(shape=NoiseShape.MAGNITUDE, scale=0.1)
    torch.testing.assert_close(
        Noise(0.1, config).levels({"w": model[1].weight})["w"], 0.1 * model[1].weight.detach().abs()
    )
    assert Noise(0.1).to_dict() == {"shape": "rows", "scale": 0.1, "distribution": "uniform"}


def test_the_noise_stays_within_its_rows_and_goes_away() -> None:
    model = nn.Linear(50, 4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with Noise(0.5).on(model, seed=1):
        for name, p in model.named_parameters():
            moved, sigma = (p - before[name]).abs(), row_levels(before[name], scale=0.5)
            assert bool((moved <= sigma * 1.0001).all()) and 0.4 < (moved / sigma).mean().item() < 0.6
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with Noise(0.5).on(model, seed=1):
        there = model.weight.detach().clone()
    with Noise(0.5).on(model, seed=1, mirrored=True):
        torch.testing.assert_close(there + model.weight.detach(), 2 * before["weight"])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_what_a_size_may_be() -> None:
    assert noise_of("auto") is None
    found: Any = noise_of(1)
    assert found.scale == 1.0 and found.config is None and not found.is_silent and noise_of(0).is_silent  # type: ignore[union-attr]
    silent: Any = noise_of(NoiseConfig(shape=NoiseShape.ISOTROPIC, scale=0.0))
    assert silent.is_silent
    for shape in (NoiseShape.PACGEN, NoiseShape.ARTICLE):
        with pytest.raises(ValueError, match=f"noise_scale has shape='{shape.value}', whose level follows a curvature"):
            noise_of(NoiseConfig(shape=shape))
    for bad in (True, [0.1]):
        with pytest.raises(ValueError, match=f"a NoiseConfig or 'auto'; got {type(bad).__name__}"):
            noise_of(bad)
