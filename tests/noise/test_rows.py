"""Noise in units of each row's root mean square: its level, its mean, its variance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hf_pacgen.config import NoiseConfig
from hf_pacgen.noise.curvature_tracker import CurvatureTracker
from hf_pacgen.noise.perturbation import Perturbation


def dense(w: Tensor) -> Tensor:
    """The level of every weight at scale 1, by the definition."""
    w = w.detach().double()
    if w.dim() < 2:
        return w.square().mean().sqrt().expand_as(w)
    return w.square().mean(dim=tuple(range(1, w.dim())), keepdim=True).sqrt().expand_as(w)


def model() -> nn.Module:
    """Rows that blocks cut through, several dimensions, tensors without rows, a row of zeros."""
    torch.manual_seed(0)
    parts = nn.ModuleDict({"linear": nn.Linear(37, 11), "conv": nn.Conv2d(3, 4, 2), "table": nn.Embedding(5, 9)})
    parts["odd"] = nn.ParameterList([torch.randn(()), torch.zeros(0), torch.randn(6)])  # type: ignore[assignment]
    with torch.no_grad():
        parts["table"].weight[2] = 0  # type: ignore[index, operator]
    return parts


@pytest.mark.parametrize("block_size", [16, 64, None])
def test_the_level_is_that_of_the_row(block_size: int | None) -> None:
    made = model().double()
    noise = Perturbation(dict(made.named_parameters()), block_size=block_size)
    tracker = CurvatureTracker(NoiseConfig(recipe="rows", scale=0.5), noise, eta=1.0)  # type: ignore[arg-type]
    with torch.no_grad():
        made["linear"].weight.mul_(2)  # type: ignore[index, operator, union-attr]
    tracker.look()
    found = {name: torch.zeros_like(p) for name, p in noise.parameters.items()}
    for block in noise.layout.blocks:
        sigma = tracker.scale(block, noise.weights_of(block))
        for s in block.segments:
            found[s.name].view(-1)[s.start : s.start + s.count] = sigma[s.at : s.at + s.count]
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(found[name], 0.5 * dense(parameter))


def test_the_noise_has_mean_0_and_the_variance_of_its_half_width() -> None:
    """Over 4,000 draws: means to 5 standard errors, variances to a tenth, none outside."""
    made = model()
    noise = Perturbation(dict(made.named_parameters()))
    tracker = CurvatureTracker(NoiseConfig(recipe="rows", scale=0.6), noise, eta=1.0)  # type: ignore[arg-type]
    tracker.look()
    weight = made["linear"].weight  # type: ignore[index, union-attr]
    clean, level = weight.detach().clone(), 0.6 * dense(weight)  # type: ignore[operator, arg-type]
    total, squares, draws = torch.zeros_like(level), torch.zeros_like(level), 4000
    for draw in range(draws):
        noise.draw(tracker.scale, draw)
        noise.apply()
        u = (weight - clean).detach().double()  # type: ignore[operator]
        noise.restore()
        assert (u.abs() <= level * (1 + 1e-6) + 1e-7).all()
        total, squares = total + u, squares + u.square()
    assert (total / draws).abs().le(5 * level / (3 * draws) ** 0.5).all()
    assert (squares / draws / (level.square() / 3) - 1).abs().max() < 0.1
    assert weight.equal(clean)  # type: ignore[operator]
