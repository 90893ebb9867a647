"""Noise in proportion to each row, or of another shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hf_pacgen import NoiseConfig
from hf_pacgen.config import NoiseShape
from hf_pacgen.predictions.levels import Noise, noise_of


def test_levels_are_those_of_the_trainable_weights() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with Noise(0.1).on(model, seed=0):
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"1.weight", "1.bias"}
    for shape, most in ((NoiseShape.MAGNITUDE, 0.1 * before["1.weight"].abs()), (NoiseShape.BOX, torch.tensor(0.02))):
        how: Any = {"gamma": 0.1} if shape is NoiseShape.MAGNITUDE else {"gamma": 0.0, "epsilon": 0.2}
        with Noise(0.1, NoiseConfig(shape=shape, scale=0.1, **how)).on(model, seed=0):
            assert bool(((model[1].weight - before["1.weight"]).abs() <= most * 1.0001).all())
    assert Noise(0.1).to_dict() == {"shape": "rows", "scale": 0.1, "distribution": "uniform"}


def test_the_noise_stays_within_its_rows_and_goes_away() -> None:
    model = nn.Linear(50, 4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with Noise(0.5).on(model, seed=1):
        for name, p in model.named_parameters():
            clean = before[name] if p.ndim > 1 else before[name][None]
            sigma = (0.5 * clean.square().mean(1, keepdim=True).sqrt()).expand(clean.shape).reshape(p.shape)
            moved = (p - before[name]).abs()
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
    for recipe in ("sam", "flat-lora"):
        with pytest.raises(ValueError, match="predictions are averaged over random noise on the trainable weights"):
            noise_of(NoiseConfig(recipe=recipe, scale=0.1))  # type: ignore[arg-type]
    assert noise_of(NoiseConfig(recipe="rows", scale=0.2)).scale == 0.2  # type: ignore[arg-type, union-attr]
    with pytest.raises(ValueError, match=r"scale='auto', which follows the losses of a training.*scale=0.3"):
        noise_of(NoiseConfig(recipe="rows"))  # type: ignore[arg-type]
    for bad in (True, [0.1]):
        with pytest.raises(ValueError, match=f"a NoiseConfig or 'auto'; got {type(bad).__name__}"):
            noise_of(bad)
