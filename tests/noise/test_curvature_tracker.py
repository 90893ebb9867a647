"""The level of the noise and the running curvature: against pure formulas and dense oracles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_pacgen.config import NoiseConfig
from hf_pacgen.maths.noise_scale import article_noise_scale, optimal_noise_scale
from hf_pacgen.noise.curvature_tracker import CurvatureTracker, RunningMean
from hf_pacgen.noise.perturbation import Perturbation

SHAPES = {"first": (40, 30), "second": (17,), "third": (5, 5)}


def tensors(seed: int = 0, **options: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, **options) for name, shape in SHAPES.items()}


def tracked(config: NoiseConfig, weights: dict[str, Tensor], *, eta: float = 100.0) -> CurvatureTracker:
    noise = Perturbation(
        weights, distribution=config.distribution, gamma=config.gamma, epsilon=config.epsilon, block_size=256
    )
    return CurvatureTracker(config, noise, eta=eta)


def levels(tracker: CurvatureTracker) -> dict[str, Tensor]:
    """σ by parameter name."""
    noise = tracker.noise
    buffers = noise.layout.buffers(torch.float32)
    for block in noise.layout.blocks:
        buffers[block.pool][block.begin : block.end] = tracker.scale(block, noise.weights_of(block))
    return noise.layout.views(buffers)


@pytest.mark.parametrize("distribution", ["uniform", "truncated_normal"])
@pytest.mark.parametrize("rho", [0.0, 0.3])
@pytest.mark.parametrize("shape", ["pacgen", "article"])
@pytest.mark.parametrize("large", [False, True], ids=["some active", "none active"])
def test_levels_are_those_of_the_formula(shape: str, rho: float, distribution: str, large: bool) -> None:
    config = NoiseConfig(
        shape=shape, rho=rho, distribution=distribution, curvature="hutchinson", curvature_decay=0.5, scale=0.5,  # type: ignore[arg-type]
        epsilon=0.001 if large else 0.1,
    )  # fmt: skip
    weights, diagonal = tensors(), tensors(1)
    tracker = tracked(config, weights)
    for _ in range(3):
        tracker.add_estimate(diagonal)
    for name, sigma in levels(tracker).items():
        common: dict[str, Any] = {"gamma": config.gamma, "epsilon": config.epsilon, "scale": 0.5}
        if shape == "pacgen":
            eta = 100.0 if distribution == "uniform" else 300.0
            m = sum(w.numel() for w in weights.values())
            expected = optimal_noise_scale(weights[name], diagonal[name], rho, eta=eta, num_parameters=m, **common)
        else:
            expected = article_noise_scale(weights[name], diagonal[name], rho, **common)
        torch.testing.assert_close(sigma, expected, rtol=1e-5, atol=0)
        box = config.gamma * weights[name].abs() + config.epsilon
        if shape == "pacgen" and not large:
            assert 0.2 < (expected < 0.999 * box).float().mean() < 0.8


def test_levels_without_curvature() -> None:
    weights = tensors()
    for name, sigma in levels(tracked(NoiseConfig(shape="isotropic", scale=0.07), weights)).items():  # type: ignore[arg-type]
        assert sigma.equal(torch.full_like(weights[name], 0.07))
    for name, sigma in levels(tracked(NoiseConfig(shape="magnitude", scale=0.07), weights)).items():  # type: ignore[arg-type]
        torch.testing.assert_close(sigma, 0.07 * weights[name].abs())
    for name, sigma in levels(tracked(NoiseConfig(), weights)).items():  # before the first sample
        torch.testing.assert_close(sigma, 0.1 * weights[name].abs() + 0.1)


@pytest.mark.parametrize("decay", [1.0, 0.9, 0.5])
def test_a_running_mean_is_the_weighted_exponential_mean(decay: float) -> None:
    mean, total = RunningMean(), 0.0
    values, counts = [3.0, -1.0, 4.0, 1.0], [1.0, 0.25, 0.5, 1.0]
    assert mean.divisor == 1.0
    for value, count in zip(values, counts, strict=True):
        total += mean.growth * count * value
        mean.add(count, decay)
    ages = [decay ** (len(values) - 1 - i) for i in range(len(values))]
    top = sum(a * c * v for a, c, v in zip(ages, counts, values, strict=True))
    assert total / mean.divisor == pytest.approx(top / sum(a * c for a, c in zip(ages, counts, strict=True)))


def test_sums_are_rescaled_before_they_overflow() -> None:
    tracker = tracked(NoiseConfig(curvature="hutchinson", curvature_decay=0.01), tensors())  # type: ignore[arg-type]
    for seed in range(40):
        tracker.add_estimate({name: t * seed for name, t in tensors(1).items()})
    for name, value in tracker.curvature().items():
        torch.testing.assert_close(value, tensors(1)[name] * (39 - 0.01 / 0.99), rtol=1e-3, atol=1e-4)
    assert all(buffer.abs().max() < 1e15 for buffer in tracker.sums.values())


def test_state_belongs_to_its_parameters() -> None:
    tracker = tracked(NoiseConfig(), tensors())
    state, values = tracker.state()
    with pytest.raises(ValueError, match=r"other trainable parameters \(different: \['third'\]\)"):
        tracker.load_state({name: t for name, t in state.items() if name != "third"}, values)
    with pytest.raises(ValueError, match=r"other trainable parameters \(different: shapes\)"):
        tracker.load_state({**state, "third": torch.zeros(2)}, values)


def test_adam_reads_the_optimizer() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.8))
    noise = Perturbation(dict(model.named_parameters()))
    tracker = CurvatureTracker(NoiseConfig(curvature="adam"), noise, eta=100.0)  # type: ignore[arg-type]
    assert not tracker.read_optimizer(optimizer, steps=0, examples_per_step=16)
    for step in range(3):
        model.weight.grad, model.bias.grad = torch.full((3, 4), 0.5), torch.full((3,), 0.25)
        optimizer.step()
        assert tracker.read_optimizer(optimizer, steps=step + 1, examples_per_step=16)
    # constant gradients: v̂ = g², and h = B v̂
    assert tracker.curvature()["weight"].flatten().tolist() == pytest.approx([16 * 0.25] * 12)
    sigma = levels(tracker)["bias"]
    torch.testing.assert_close(
        sigma, optimal_noise_scale(model.bias, torch.full((3,), 1.0), 0.0, eta=100.0, num_parameters=15)
    )


def optimizers() -> Iterator[Any]:
    yield torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    yield torch.optim.Adafactor([nn.Parameter(torch.zeros(2))])


@pytest.mark.parametrize("optimizer", list(optimizers()), ids=lambda o: type(o).__name__)
def test_adam_needs_second_moments(optimizer: Any) -> None:
    tracker = tracked(NoiseConfig(curvature="adam"), tensors())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"reads exp_avg_sq, which {type(optimizer).__name__} does not keep"):
        tracker.read_optimizer(optimizer, steps=0, examples_per_step=1)


def test_adam_notices_an_optimizer_of_another_kind_after_its_first_step() -> None:
    """Betas alone do not make second moments (Lion has none)."""
    weights = tensors()
    optimizer = torch.optim.AdamW([*weights.values()])
    for tensor in weights.values():
        optimizer.state[tensor] = {"exp_avg": torch.zeros_like(tensor)}
    tracker = tracked(NoiseConfig(curvature="adam"), weights)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Use an optimizer of the Adam family"):
        tracker.read_optimizer(optimizer, steps=1, examples_per_step=1)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"momentum_buffer": torch.zeros(1)}, "which AdamW keeps of a part of the weights only: not of {}, which"),
        (
            {"exp_avg_sq": torch.zeros(1)},
            r"of AdamW is of other shapes, as of a projected gradient: {} ",
        ),
    ],
)
def test_adam_needs_second_moments_of_all_weights(state: dict[str, Tensor], message: str) -> None:
    """Muon keeps them of vectors only, and GaLore of projections."""
    weights = tensors()
    optimizer = torch.optim.AdamW([*weights.values()])
    *others, (name, last) = weights.items()
    for _, weight in others:
        optimizer.state[weight] = {"exp_avg_sq": torch.zeros_like(weight)}
    tracker = tracked(NoiseConfig(curvature="adam"), weights)  # type: ignore[arg-type]
    assert tracker.read_optimizer(optimizer, steps=1, examples_per_step=1)  # the other never had a gradient
    optimizer.state[last] = state
    with pytest.raises(ValueError, match=message.format(name)):
        tracker.read_optimizer(optimizer, steps=1, examples_per_step=1)


def test_memory_is_two_buffers_of_the_trainable_parameters() -> None:
    weights = {"large": torch.zeros(1000, 700), "small": torch.zeros(30)}
    tracker = CurvatureTracker(NoiseConfig(), Perturbation(weights), eta=1.0)
    tracker.noise.draw(tracker.scale, 0)
    held = [*tracker.noise._buffers.values(), *tracker.sums.values()]
    assert sum(buffer.numel() for buffer in held) <= 2 * (700_030 + 16)
    assert sum(work.numel() for work in tracker._work.values()) <= 2 * 250_000


def test_a_state_of_release_0_1_is_read() -> None:
    """It had means of the turns that had been taken, and one more (-1) for the embeddings whose rows had noise."""
    tracker = tracked(NoiseConfig(), tensors())
    state = {name: torch.ones_like(part) for name, part in tracker.state()[0].items()}
    means = {0: RunningMean(1.01, 2.0), -1: RunningMean(1.01, 2.0)}
    tracker.load_state(state, {"rho": 0.5, "means": means, "whole": ["first"]})
    assert tracker.means[0] == RunningMean(1.01, 2.0) and tracker.means[1] == RunningMean()
    assert set(tracker.means) == set(range(4))
