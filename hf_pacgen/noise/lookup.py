"""Noise on an embedding, in the rows that a batch reads and no others.

An untied embedding is used through the lookup alone, so the rows that a batch does not read neither change its
loss nor have a gradient: noise there would be work for nothing.  The noise of the rows that are read is added to
what the lookup returns, which is the same as reading w + u.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_pacgen.maths.counter_rng import stream_key, uniform_rows
from hf_pacgen.noise.perturbation import Perturbation

__all__ = ["LookupNoise", "worthwhile"]

WORTHWHILE = 1 << 20
"""Weights below which an embedding is cheaper to perturb whole."""

RowScale = Callable[[str, Tensor, Tensor], Tensor]
"""(name, rows, their weights) -> σ of the rows."""


class LookupNoise:
    """Uniform noise on the rows that one embedding reads while it is switched on.

    The noise of a row is a function of the key, the parameter's name and the row, the same as
    :class:`~hf_pacgen.noise.perturbation.Perturbation` would give it.

    Args:
        name: of the weights.
        module: a plain ``nn.Embedding`` whose weights no other module uses.
        noise: the noise of the other parameters, with which this one is switched on and off.
    """

    def __init__(self, name: str, module: nn.Embedding, noise: Perturbation) -> None:
        self.name, self.module, self.noise = name, module, noise
        self._name_stream = self._stream = stream_key("parameter", name)
        self._scale: RowScale | None = None
        self._factor = 1.0
        self._read: list[tuple[int, Tensor]] = []
        """The stream and the rows of every lookup since the step's first draw."""

    @property
    def weight(self) -> Tensor:
        """The weights of the embedding."""
        return self.module.weight

    def draw(self, scale: RowScale, *key: str | int, factor: float = 1.0, first: bool = True) -> None:
        """Set the noise, at the level factor · σ; ``first`` forgets what was read before."""
        self._stream, self._scale, self._factor = self._name_stream ^ stream_key(*key), scale, factor
        if first:
            self._read = []

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """The forward hook of the embedding."""
        if not self.noise.applied:
            return None
        rows, inverse = torch.unique(args[0].detach(), return_inverse=True)
        self._read.append((self._stream, rows))
        with torch.no_grad():
            noise = self._noise(self._stream, rows, self._weights(rows))
        return (output + noise[inverse]).to(output.dtype)

    def noise_read(self) -> tuple[Tensor, Tensor, Tensor]:
        """The rows that were read since the step's first draw, their weights, and the sum of their draws."""
        if not self._read:
            rows = torch.zeros(0, dtype=torch.int64)
            return rows, self._weights(rows), self._weights(rows)
        rows = torch.cat([read for _, read in self._read]).unique()
        weights = self._weights(rows)
        total = torch.zeros_like(weights)
        for stream in dict.fromkeys(stream for stream, _ in self._read):
            mine = torch.cat([read for other, read in self._read if other == stream]).unique()
            total.index_add_(0, torch.searchsorted(rows, mine), self._noise(stream, mine, self._weights(mine)))
        return rows, weights, total

    def _weights(self, rows: Tensor) -> Tensor:
        weight = self.weight.detach()
        return weight[rows].to(torch.promote_types(weight.dtype, torch.float32))

    def _noise(self, stream: int, rows: Tensor, weights: Tensor) -> Tensor:
        if self._scale is None:
            return torch.zeros_like(weights)
        unit = uniform_rows(stream, rows, weights.shape[1], dtype=weights.dtype)
        return unit.mul_(self._scale(self.name, rows, weights)).mul_(self._factor)


def worthwhile(embeddings: Mapping[str, nn.Module]) -> dict[str, nn.Embedding]:
    """The embeddings that are worth perturbing row by row: large ones on a CPU.

    On a GPU the whole matrix costs less than finding the rows.

    Args:
        embeddings: untied embedding layers, by the name of their weights.
    """
    return {
        name: module
        for name, module in embeddings.items()
        if isinstance(module, nn.Embedding)
        and module.weight.device.type == "cpu"
        and module.weight.numel() >= WORTHWHILE
        and module.embedding_dim % 8 == 0
    }
