"""Ascent along a gradient: what is held where, and when there is no direction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hf_pacgen.noise.directions import Ascent, Held
from hf_pacgen.noise.perturbation import Perturbation


def uphill(**how: Any) -> tuple[nn.Linear, Perturbation, Ascent]:
    torch.manual_seed(0)
    layer = nn.Linear(40, 7)
    noise = Perturbation(dict(layer.named_parameters()), **how)
    return layer, noise, Ascent(noise, lambda block, weights: torch.full_like(weights, 0.3))


def gradients(layer: nn.Module) -> dict[str, Any]:
    return {name: torch.randn_like(p) for name, p in layer.named_parameters()}


@pytest.mark.parametrize("size", [1.0, 2.0**-40, 2.0**30])
def test_the_radius_does_not_depend_on_the_size_of_the_gradient(size: float) -> None:
    layer, noise, ascent = uphill(block_size=64)
    found = gradients(layer)
    clean = layer.weight.detach().clone()
    ascent.hold({name: g * size for name, g in found.items() if g is not None})
    assert ascent.move(0.5)
    noise.apply()
    norm = torch.cat([g.reshape(-1) for g in found.values() if g is not None]).norm()
    torch.testing.assert_close(layer.weight - clean, 0.15 * found["weight"] / norm)
    noise.restore()
    assert layer.weight.equal(clean)


@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
def test_a_gradient_that_is_no_direction_is_none(bad: float) -> None:
    layer, noise, ascent = uphill()
    if bad:
        found = gradients(layer)
        found["bias"][2] = bad
    else:
        found = dict.fromkeys(noise.parameters)
    ascent.hold(found)
    assert not ascent.move(1.0) and ascent.held is Held.NOTHING and not ascent.move(1.0)


@pytest.mark.parametrize("moved", [False, True], ids=["between steps", "within a step"])
def test_its_state_goes_on_bit_for_bit(moved: bool) -> None:
    layer, noise, ascent = uphill()
    ascent.hold(gradients(layer))
    if moved:
        ascent.move(1.0)
    tensors, values = ascent.state()
    saved = {name: tensor.clone() for name, tensor in tensors.items()}
    _, other, resumed = uphill()
    resumed.load_state(saved, values)
    for one in (ascent, resumed):
        assert one.held.facts or one.move(1.0)
    assert all(other.twins()[name].equal(twin) for name, twin in noise.twins().items())
    resumed.load_state({}, {})  # of a run without
    assert resumed.held is Held.NOTHING
    with pytest.raises(ValueError, match=r"direction in the noise state belongs to other trainable.*\['bias'\]"):
        resumed.load_state({"weight": saved["weight"]}, values)
