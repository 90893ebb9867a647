"""Products of noise and gradient, from which ``price`` makes samples of the curvature."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hf_pacgen.noise.layout import Block
from hf_pacgen.noise.twins import Perturbation

__all__ = ["PairedProducts", "single_products"]

Gradients = Mapping[str, Tensor | None]


def single_products(noise: Perturbation, gradients: Gradients) -> Callable[[Block], Tensor]:
    """g(w+u) u of a block, with u the last draw."""

    def product(block: Block) -> Tensor:
        u = noise.noise(block)
        return u.mul_(noise.layout.gather(block, gradients, u.dtype))

    return product


class PairedProducts:
    """(g(w+u) - g(w-u))/2 · u of antithetic pairs, whose accumulated gradient (g(w+u) + g(w-u))/2 tells nothing.

    Gradients accumulate, A₀ → A₁ = A₀ + g(w+u)/2 → A₂ = A₁ + g(w-u)/2, so the product is (2A₁ - A₀ - A₂) u: it is
    collected as the pair goes along, with one buffer for the blocks that are sampled in the step and none besides.

    Args:
        noise: the perturbation.
        blocks: those that are sampled in this step.
    """

    def __init__(self, noise: Perturbation, blocks: list[Block]) -> None:
        self.noise, self.blocks = noise, blocks
        self.collected = {
            block.index: torch.zeros(block.size, device=block.pool[0], dtype=block.wide) for block in blocks
        }

    @torch.no_grad()
    def collect(self, gradients: Gradients, times: float) -> None:
        """Add times · A u, with A the gradients accumulated so far and u the noise of the first of the pair."""
        if all(gradient is None for gradient in gradients.values()):
            return
        product = single_products(self.noise, gradients)
        for block in self.blocks:
            self.collected[block.index].add_(product(block), alpha=times)

    def mean(self, average: Callable[[Tensor], Tensor]) -> Callable[[Block], Tensor]:
        """The products, averaged over processes: gradients that were not yet reduced differ between them."""
        for collected in self.collected.values():
            average(collected)
        return lambda block: self.collected[block.index]
