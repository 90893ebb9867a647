"""The root mean square of every row of the weights, as a level for all weights of the row."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hf_pacgen.noise.layout import Block, Segment
from hf_pacgen.noise.perturbation import Perturbation


class RowMeanSquares:
    """sqrt(Σ w²/n) of the rows of a Perturbation's parameters, as they were when last :meth:`read`.

    A row is all that stands at one index of the first dimension: what an output of a Linear layer is made of, a filter
    of a convolution, the vector of a token.  A tensor of one dimension or none (a bias, the weights of a norm) is one
    row.  Shards of FSDP2 hold whole rows, so only the latter are summed over the processes.
    """

    def __init__(self, noise: Perturbation) -> None:
        self.noise = noise
        self._rms: dict[str, Tensor] = {}
        self._flat = [name for name, parameter in noise.parameters.items() if parameter.dim() < 2]
        # of whole tensors, the parts of all processes together
        self._counts = {name: max(1, noise.parameters[name].numel()) for name in self._flat}

    @torch.no_grad()
    def read(self) -> None:
        """Look at the weights, which must be without noise."""
        for name, weights in self.noise.weights.items():
            wide = torch.promote_types(weights.dtype, torch.float32)
            if name in self._counts:
                self._rms[name] = torch.linalg.vector_norm(weights, dtype=wide).reshape(1)
                continue
            width = max(1, math.prod(weights.shape[1:]))
            rows = weights.reshape(weights.shape[0], -1)
            self._rms[name] = torch.linalg.vector_norm(rows, dim=1, dtype=wide).div_(math.sqrt(width))
        if self.noise.divided and self._flat:
            device = self.noise.weights[self._flat[0]].device
            squares = torch.stack([self._rms[name][0].double().square().to(device) for name in self._flat])
            for name, square in zip(self._flat, self.noise.total(squares), strict=True):
                self._rms[name] = square.sqrt().reshape(1).to(self._rms[name])
        for name, count in self._counts.items():
            self._rms[name] = self._rms[name] / math.sqrt(count)

    def of(self, block: Block) -> Tensor:
        """That of the row of every weight of a block, flat, at least float32; it may be overwritten."""
        if block.only is not None:
            return self._expanded(block.only).to(block.wide)
        out = torch.zeros(block.size, device=block.pool[0], dtype=block.wide)
        for s in block.segments:
            if s.name in self._counts:
                out[s.at : s.at + s.count].fill_(self._rms[s.name][0])
            else:
                out[s.at : s.at + s.count].copy_(self._expanded(s))
        return out

    def _expanded(self, s: Segment) -> Tensor:
        rms = self._rms[s.name]
        if s.name in self._counts:
            return rms.expand(s.count).contiguous()
        width = max(1, math.prod(self.noise.weights[s.name].shape[1:]))
        first, last = s.start // width, -(-(s.start + s.count) // width)
        # a block may begin and end in the middle of a row
        begin = s.start - first * width
        # of a single row it would be a view of one number
        return rms[first:last, None].expand(-1, width).reshape(-1)[begin : begin + s.count].contiguous()
