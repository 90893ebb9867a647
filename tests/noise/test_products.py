"""The curvature out of noise and gradients: the exact diagonal of a quadratic loss, in every way to collect it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_pacgen.config import NoiseConfig
from hf_pacgen.noise.curvature_tracker import CurvatureTracker
from hf_pacgen.noise.perturbation import Perturbation
from hf_pacgen.noise.products import PairedProducts, Products, single_products, summed_products


def tracked(config: NoiseConfig, weights: dict[str, Tensor], *, eta: float = 100.0) -> CurvatureTracker:
    noise = Perturbation(
        weights, distribution=config.distribution, gamma=config.gamma, epsilon=config.epsilon, block_size=256
    )
    return CurvatureTracker(config, noise, eta=eta)


class Quadratic:
    """A loss with a dense Hessian, whose gradient at any weights is known; each micro-batch adds noise of its own."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        generator = torch.Generator().manual_seed(5)
        self.shapes = shapes
        size = sum(math.prod(shape) for shape in shapes.values())
        root = 0.3 * torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
        self.hessian = root + root.T + torch.diag(0.5 + torch.rand(size, generator=generator, dtype=torch.float64))
        self.slope = 0.01 * torch.randn(size, generator=generator, dtype=torch.float64)

    def gradient(self, weights: dict[str, Tensor], share: float = 1.0) -> dict[str, Tensor]:
        flat = torch.cat([w.reshape(-1).double() for w in weights.values()])
        pieces = (share * (self.hessian @ flat + self.slope)).split([math.prod(s) for s in self.shapes.values()])
        return {n: piece.view(s).float() for (n, s), piece in zip(self.shapes.items(), pieces, strict=True)}

    def diagonal(self, name: str) -> Tensor:
        pieces = self.hessian.diagonal().split([math.prod(s) for s in self.shapes.values()])
        return dict(zip(self.shapes, pieces, strict=True))[name].view(self.shapes[name])


def add(total: dict[str, Tensor], part: dict[str, Tensor]) -> None:
    for name, tensor in part.items():
        total[name] = total[name] + tensor if name in total else tensor


def one_batch(noise: Perturbation, tracker: CurvatureTracker, loss: Quadratic, step: int) -> Products:
    noise.draw(tracker.scale, step)
    return single_products(noise, loss.gradient(noise._twins))


def three_batches(noise: Perturbation, tracker: CurvatureTracker, loss: Quadratic, step: int) -> Products:
    total: dict[str, Tensor] = {}
    keys = [(step, micro) for micro in range(3)]
    for key in keys:
        noise.draw(tracker.scale, *key)
        add(total, loss.gradient(noise._twins, 1 / 3))
    return summed_products(noise, total, tracker.scale, keys, 1.0)


def antithetic(noise: Perturbation, tracker: CurvatureTracker, loss: Quadratic, step: int) -> Products:
    total: dict[str, Tensor] = {}
    pairs = PairedProducts(noise, [b for b in noise.layout.blocks if tracker.is_sampled(b, step)])
    for micro in range(2):
        noise.draw(tracker.scale, step, micro)
        pairs.collect(total, -1.0)
        add(total, loss.gradient(noise._twins, 1 / 4))
        pairs.collect(total, 2.0)
        noise.mirror()
        add(total, loss.gradient(noise._twins, 1 / 4))
        pairs.collect(total, 1.0)
    return pairs.mean(None)


@pytest.mark.parametrize(
    "way, distribution",
    [(one_batch, "uniform"), (one_batch, "truncated_normal"), (three_batches, "uniform"), (antithetic, "uniform")],
)
def test_price_converges_to_the_exact_diagonal(way: Any, distribution: str) -> None:
    """To 10 %, averaged over 400 samples of each weight; the blocks take turns."""
    shapes = {"first": (6, 5), "second": (4,), "third": (3, 3)}
    loss = Quadratic(shapes)
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    config = NoiseConfig(curvature_every=2, curvature_decay=1.0, distribution=distribution)  # type: ignore[arg-type]
    noise = Perturbation(weights, distribution=distribution, block_size=32)
    tracker = CurvatureTracker(config, noise, eta=100.0)
    for step in range(800):
        products = way(noise, tracker, loss, step)
        tracker.sample_price(step, products, factor=1.0, rescale=None)
    for name, value in tracker.curvature().items():
        exact = loss.diagonal(name).float()
        assert (value - exact).norm() / exact.norm() < 0.1
    assert len(noise.layout.blocks) > 1


def test_weak_noise_counts_little_and_rescaled_gradients_count_fully() -> None:
    """A sample's variance goes with 1/factor², so it gets the weight factor²."""
    weights, loss = {"w": torch.zeros(30)}, Quadratic({"w": (30,)})
    values = []
    for factors, rescale in (([1.0, 1.0], None), ([1.0, 1e-3], None), ([1.0], torch.tensor(4.0))):
        tracker = tracked(NoiseConfig(curvature_every=1, curvature_decay=1.0), weights)
        for step, factor in enumerate(factors):
            tracker.noise.draw(tracker.scale, step, factor=factor)
            gradient = loss.gradient(tracker.noise._twins, 1.0 if rescale is None else 0.25)
            products = single_products(tracker.noise, gradient)
            tracker.sample_price(step, products, factor=factor, rescale=rescale)
        values.append(tracker.curvature()["w"])
    assert torch.allclose(values[2], values[1], rtol=1e-2, atol=1e-2) and not torch.allclose(
        values[0], values[1], rtol=0.1
    )


def test_the_curvature_of_weights_without_noise_stays_0() -> None:
    weights = {"w": torch.tensor([0.0, 1.0])}
    tracker = tracked(NoiseConfig(curvature_every=1, epsilon=0), weights)
    tracker.noise.draw(tracker.scale, 0)
    products = single_products(tracker.noise, {"w": torch.ones(2)})
    tracker.sample_price(0, products, factor=1.0, rescale=None)
    first, second = tracker.curvature()["w"].tolist()
    assert first == 0 and second != 0


def test_an_overflow_under_a_loss_scale_is_forgotten() -> None:
    weights = {"w": torch.zeros(8)}
    tracker = tracked(NoiseConfig(curvature_every=1), weights)
    tracker.noise.draw(tracker.scale, 0)
    gradient = torch.tensor([torch.inf, torch.nan, *[1.0] * 6])
    products = single_products(tracker.noise, {"w": gradient})
    tracker.sample_price(0, products, factor=1.0, rescale=torch.tensor(0.0))
    assert tracker.curvature()["w"].isfinite().all()


def test_blocks_without_a_gradient_cost_and_change_nothing() -> None:
    """As most of an embedding's, whose rows few batches read."""
    weights = {"read": torch.ones(64), "unread": torch.ones(64), "nowhere": torch.ones(64)}
    tracker = tracked(NoiseConfig(curvature_every=1), weights)
    tracker.noise = noise = Perturbation(weights, block_size=64)
    tracker = CurvatureTracker(NoiseConfig(curvature_every=1), noise, eta=100.0)
    noise.draw(tracker.scale, 0)
    products = single_products(noise, {"read": torch.ones(64), "unread": torch.zeros(64), "nowhere": None})
    assert [products(block) is None for block in noise.layout.blocks] == [False, True, True]
    tracker.sample_price(0, products, factor=1.0, rescale=None)
    h = tracker.curvature()
    assert h["read"].all() and not h["unread"].any() and not h["nowhere"].any() and tracker.means[0].total == 1.0
