"""Noise on a model: its size, its keys, and that it leaves without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hf_pacgen.noise.perturbation import Perturbation


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 40), nn.LayerNorm(40), nn.Linear(40, 3)).to(dtype)


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("distribution", ["uniform", "truncated_normal"])
@pytest.mark.parametrize("block_size", [64, 200, 1 << 20])
def test_blocks_do_not_change_the_noise(block_size: int, distribution: str) -> None:
    parameters = dict(network().named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    noises = []
    for size in (1 << 16, block_size):
        noise = Perturbation(parameters, distribution=distribution, block_size=size)
        noise.draw(lambda block, weights: torch.full_like(weights, 0.1), 7)
        noise.apply()
        noises.append({name: p.detach() - before[name] for name, p in parameters.items()})
        noise.restore()
    whole = distribution == "uniform"  # normal noise is drawn from a generator for each piece
    assert all(noises[0][name].equal(noises[1][name]) for name in before) or not whole
    assert all((noises[1][name] != 0).float().mean() > 0.9 for name in before)


def test_a_copy_of_the_noisy_weights_is_not_kept() -> None:
    model = network()
    before, noise = copies(model), Perturbation(dict(model.named_parameters()))
    noise.draw(lambda block, weights: torch.full_like(weights, 0.1), 7)
    noise.apply()
    model.double().float()  # the same values in other storage
    noise.restore()
    assert all(p.equal(before[name]) for name, p in model.named_parameters())


def test_a_mirrored_draw_is_the_opposite() -> None:
    parameters = dict(network().named_parameters())
    noise = Perturbation(parameters)
    noise.draw(lambda block, weights: torch.full_like(weights, 0.1), 7)
    first = [noise.noise(block) for block in noise.layout.blocks]
    noise.mirror()
    for block, before in zip(noise.layout.blocks, first, strict=True):
        torch.testing.assert_close(noise.noise(block), -before, rtol=0, atol=1e-6)
