"""Products of noise and gradient, from which ``price`` makes samples of the curvature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hf_pacgen.noise.layout import Block
from hf_pacgen.noise.perturbation import Perturbation, ScaleFunction

__all__ = ["PairedProducts", "single_products", "summed_products"]

Gradients = Mapping[str, Tensor | None]


def single_products(noise: Perturbation, gradients: Gradients) -> Callable[[Block], Tensor]:
    """g(w+u) u of a block, with u the last draw."""

    def product(block: Block) -> Tensor:
        u = noise.noise(block)
        return u.mul_(noise.layout.gather(block, gradients, u.dtype))

    return product


def summed_products(
    noise: Perturbation,
    gradients: Gradients,
    scale: ScaleFunction,
    keys: Sequence[tuple[str | int, ...]],
    factor: float,
) -> Callable[[Block], Tensor]:
    """g Σ_k u_k of a block, with g = Σ_k g_k(w+u_k) the gradient of micro-batches with draws of their own.

    Draws are independent, so E g Σ_k u_k = Σ_k E g_k(w+u_k) u_k: no gradient of a single micro-batch is needed,
    and the draws are made again from their keys.
    """

    def product(block: Block) -> Tensor:
        total = torch.zeros(block.size, device=block.pool[0], dtype=block.wide)
        for key in keys:
            total.add_(noise.redraw(scale, block, *key, factor=factor))
        return total.mul_(noise.layout.gather(block, gradients, total.dtype))

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
