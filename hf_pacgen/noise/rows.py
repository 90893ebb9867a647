"""The root mean square of every row of the weights, as a level for all weights of the row."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hf_pacgen.noise.layout import Block, Segment
from hf_pacgen.noise.perturbation import Perturbation


class RowLevels:
    """A function ``level`` of sqrt(Σ w²/n) of the rows of a Perturbation's parameters, as they were when last read.

    A row is all that stands at one index of the first dimension: what an output of a Linear layer is made of, a filter
    of a convolution, the vector of a token.  A tensor of one dimension or none (a bias, the weights of a norm) is one
    row.  Shards of FSDP2 hold whole rows, so only the latter are summed over the processes.
    """

    def __init__(self, noise: Perturbation, level: Callable[[Tensor], Tensor] = lambda row_rms: row_rms) -> None:
        self.noise, self._level = noise, level
        self._levels: dict[str, Tensor] = {}
        self._flat = [name for name, parameter in noise.parameters.items() if parameter.dim() < 2]
        # of whole tensors, the parts of all processes together
        self._counts = {name: max(1, noise.parameters[name].numel()) for name in self._flat}
        self._widths = {name: max(1, math.prod(parameter.shape[1:])) for name, parameter in noise.parameters.items()}
        # memory for a block's levels and the rest of the rows that it cuts: that of one is used up before the next's
        self._work: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        for block in noise.layout.blocks:
            if block.on_cpu:
                size = block.size + 2 * max((self._widths[s.name] for s in block.segments), default=0)
                kind = (block.pool[0], block.wide)
                if kind not in self._work or len(self._work[kind]) < size:
                    self._work[kind] = torch.empty(size, dtype=block.wide)

    @torch.no_grad()
    def read(self) -> None:
        """Look at the weights, which must be without noise."""
        found: dict[str, Tensor] = {}
        for name, weights in self.noise.weights.items():
            wide = torch.promote_types(weights.dtype, torch.float32)
            if name in self._counts:
                found[name] = torch.linalg.vector_norm(weights, dtype=wide).reshape(1)
                continue
            rows = weights.reshape(weights.shape[0], -1)
            found[name] = torch.linalg.vector_norm(rows, dim=1, dtype=wide).div_(math.sqrt(self._widths[name]))
        if self.noise.divided and self._flat:
            device = self.noise.weights[self._flat[0]].device
            squares = torch.stack([found[name][0].double().square().to(device) for name in self._flat])
            for name, square in zip(self._flat, self.noise.total(squares), strict=True):
                found[name] = square.sqrt().reshape(1).to(found[name])
        for name, count in self._counts.items():
            found[name] = found[name] / math.sqrt(count)
        # of the rows, before they are spread over all weights
        self._levels = {name: self._level(rms) for name, rms in found.items()}

    def of(self, block: Block) -> Tensor:
        """The level of every weight of a block, flat, at least float32; it holds until the next call."""
        kind = (block.pool[0], block.wide)
        memory = self._work.get(kind)
        if block.only is not None:
            return self._spread(block.only, block.wide, memory)
        out = torch.zeros(block.size, device=block.pool[0], dtype=block.wide)
        for s in block.segments:
            out[s.at : s.at + s.count].copy_(self._spread(s, block.wide, memory))
        return out

    def _spread(self, s: Segment, dtype: torch.dtype, memory: Tensor | None) -> Tensor:
        levels, width = self._levels[s.name], self._widths[s.name]
        if s.name in self._counts:
            out = torch.empty(s.count, device=levels.device, dtype=dtype) if memory is None else memory[: s.count]
            return out.copy_(levels.expand(s.count))
        # a block may begin and end in the middle of a row
        first, last = s.start // width, -(-(s.start + s.count) // width)
        size, begin = (last - first) * width, s.start - first * width
        out = torch.empty(size, device=levels.device, dtype=dtype) if memory is None else memory[:size]
        out.view(last - first, width).copy_(levels[first:last, None])
        return out[begin : begin + s.count]
