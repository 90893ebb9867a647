"""What the ``price`` curvature is made of: products of the noise and the gradient that was taken at it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hf_pacgen.noise.layout import Block
from hf_pacgen.noise.perturbation import Perturbation, ScaleFunction

Gradients = Mapping[str, Tensor | None]
Products = Callable[[Block], Tensor | None]
"""g(w+u) u of a block, which may be overwritten; None where it is 0 everywhere."""


def single_products(noise: Perturbation, gradients: Gradients) -> Products:
    """g(w+u) u of a block, with u the last draw."""

    def product(block: Block) -> Tensor | None:
        gradient = noise.layout.gather(block, gradients, block.wide)
        # rows of an embedding that the batch did not read; on a GPU, to wait for the answer costs more than it saves
        if block.on_cpu and not any(torch.aminmax(gradient)):
            return None
        return noise.noise(block).mul_(gradient)

    return product


def summed_products(
    noise: Perturbation,
    gradients: Gradients,
    scale: ScaleFunction,
    keys: Sequence[tuple[str | int, ...]],
    factor: float,
) -> Products:
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
    """

    def __init__(self, noise: Perturbation, sampled: Sequence[Block]) -> None:
        self.noise, self.blocks = noise, sampled
        self.collected = {b.index: torch.zeros(b.size, device=b.pool[0], dtype=b.wide) for b in sampled}

    @torch.no_grad()
    def collect(self, gradients: Gradients, times: float) -> None:
        """Add times · A u, with A the gradients accumulated so far and u the noise of the first of the pair."""
        if all(gradient is None for gradient in gradients.values()):
            return  # A₀ of the first pair
        products = single_products(self.noise, gradients)
        for block in self.blocks:
            if (product := products(block)) is not None:
                self.collected[block.index].add_(product, alpha=times)

    def mean(self, average: Callable[[Tensor], Tensor] | None) -> Products:
        """The products, averaged over processes in place: gradients that were not yet reduced differ between them."""
        if average is not None:
            for collected in self.collected.values():
                average(collected)
        return lambda block: self.collected[block.index]
