"""Data and network of the toy: points labeled by density, and an MLP whose layers share two weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

POINTS, LAYERS = 100, 5


@dataclass
class Mixture:
    """Three round Gaussians of equal weight."""

    means: Tensor
    widths: Tensor
    points: Tensor
    labels: Tensor

    @classmethod
    def draw(cls, seed: int) -> Mixture:
        """A mixture, and points of it labeled by density."""
        generator = torch.Generator().manual_seed(seed)
        means = 1.5 * torch.randn(3, 2, generator=generator, dtype=torch.float64)
        widths = 0.3 + torch.rand(3, generator=generator, dtype=torch.float64)
        which = torch.randint(0, 3, (POINTS,), generator=generator)
        noise = torch.randn(POINTS, 2, generator=generator, dtype=torch.float64)
        points = means[which] + widths[which, None] * noise
        mixture = cls(means, widths, points, torch.zeros(0))
        density = mixture.density(points)
        mixture.labels = (density > density.median()).long()
        return mixture

    def density(self, points: Tensor) -> Tensor:
        """At some points, up to a factor."""
        squares = (points[:, None] - self.means).square().sum(-1)
        return (torch.exp(-squares / (2 * self.widths**2)) / self.widths**2).mean(1)


def logits(weights: Tensor, points: Tensor) -> Tensor:
    """Five layers with the matrix [[w1, w2], [w1, -w2]], and between them the sigmoid around its middle, σ(z) - 1/2."""
    matrix = torch.stack([weights, weights * weights.new_tensor([1.0, -1.0])])
    hidden = points
    for layer in range(LAYERS):
        hidden = hidden @ matrix.T
        if layer < LAYERS - 1:
            hidden = torch.sigmoid(hidden) - 0.5
    return hidden


class SharedMLP(nn.Module):
    """The network at given weights, as any other model."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(weights.clone())

    def forward(self, points: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = logits(self.w, points)
        return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}
