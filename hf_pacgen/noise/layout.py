"""Parameters laid out flat, in blocks that elementwise work goes through one after another.

A block is a piece of a large tensor, or many small tensors together: on a CPU small enough to stay
in the cache, on a GPU large enough that a model of hundreds of tensors costs few kernel launches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# 0.75 MiB of float32: half of it costs a fifth more in calls, the double brings nothing
CPU_BLOCK = 3 << 16
# 64 MiB of float32: launches are few, and temporaries stay far below the size of a large model
GPU_BLOCK = 1 << 24
# elements that one 64-bit random word serves; every tensor starts at a multiple
ALIGNMENT = 8

Pool = tuple[torch.device, torch.dtype]
"""Parameters of one device and dtype, which share flat buffers."""


@dataclass(frozen=True)
class Segment:
    """``count`` elements of the parameter ``name`` from ``start`` on, which lie at ``at`` in their block."""

    name: str
    start: int
    count: int
    at: int


@dataclass(frozen=True)
class Block:
    """The elements ``begin`` … ``end`` of a pool's flat buffers.  ``index`` numbers the blocks of a layout."""

    index: int
    pool: Pool
    begin: int
    end: int
    segments: tuple[Segment, ...]

    @cached_property
    def size(self) -> int:
        """Number of elements, with the padding between tensors."""
        return self.end - self.begin

    @cached_property
    def on_cpu(self) -> bool:
        """Whether a number of it can be read without waiting for a device."""
        return self.pool[0].type == "cpu"

    @cached_property
    def wide(self) -> torch.dtype:
        """The dtype to compute in: the pool's, at least float32."""
        return torch.promote_types(self.pool[1], torch.float32)

    @cached_property
    def only(self) -> Segment | None:
        """The segment that fills the block, or None if there are several."""
        return self.segments[0] if len(self.segments) == 1 and self.segments[0].count == self.size else None


class Layout:
    """Where every parameter lies in the flat buffers, and the blocks they are cut into.

    Args:
        parameters: tensors by name; each is laid out in row-major order, whatever its strides.
        block_size: elements of a block, a multiple of 8; by default what suits the device.
        offsets: index in the whole flat tensor at which the part that is here begins, by name, where there is more.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        block_size: int | None = None,
        offsets: Mapping[str, int] | None = None,
    ) -> None:
        # elements keep the place in a random word that they have in the whole tensor
        self._leads = {name: offset % ALIGNMENT for name, offset in (offsets or {}).items()}
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self.places: dict[str, tuple[Pool, int]] = {}
        self.sizes: dict[Pool, int] = {}
        self.blocks: list[Block] = []
        pools: dict[Pool, list[str]] = {}
        for name, parameter in parameters.items():
            pools.setdefault((parameter.device, parameter.dtype), []).append(name)
        for pool, names in pools.items():
            self._lay_out(pool, names, block_size or (CPU_BLOCK if pool[0].type == "cpu" else GPU_BLOCK))

    def buffers(self, dtype: torch.dtype | None = None) -> dict[Pool, Tensor]:
        """A flat buffer of zeros for every pool: in ``dtype`` promoted with the pool's, by default in the pool's."""
        return {
            pool: torch.zeros(size, device=pool[0], dtype=torch.promote_types(pool[1], dtype) if dtype else pool[1])
            for pool, size in self.sizes.items()
        }

    def views(self, buffers: Mapping[Pool, Tensor]) -> dict[str, Tensor]:
        """The parts of flat buffers that belong to each parameter, in its shape."""
        views = {}
        for name, shape in self.shapes.items():
            pool, offset = self.places[name]
            views[name] = buffers[pool][offset : offset + shape.numel()].view(shape)
        return views

    def gather(self, block: Block, tensors: Mapping[str, Tensor | None], dtype: torch.dtype | None = None) -> Tensor:
        """The elements of a block, flat, out of tensors by name (None is zeros): a view where that is possible."""
        dtype = dtype or block.pool[1]
        found = [(s, tensor) for s in block.segments if (tensor := tensors[s.name]) is not None]
        pieces = [tensor.detach().reshape(-1)[s.start : s.start + s.count] for s, tensor in found]
        if pieces and block.only is not None:
            return pieces[0].to(dtype)
        out = torch.zeros(block.size, device=block.pool[0], dtype=dtype)
        if pieces:
            torch._foreach_copy_([out[s.at : s.at + s.count] for s, _ in found], pieces)
        return out

    def _lay_out(self, pool: Pool, names: list[str], block_size: int) -> None:
        offset = begin = 0
        waiting: list[Segment] = []
        # a large tensor has blocks of its own, which need no gathering; the small ones lie together after them
        for name in sorted(names, key=lambda name: 2 * self.shapes[name].numel() < block_size):
            count, lead = self.shapes[name].numel(), self._leads.get(name, 0)
            end = lead + count
            self.places[name] = (pool, offset + lead)
            alone = 2 * count >= block_size
            if waiting and (alone or offset - begin + end > block_size):
                self._close(pool, begin, waiting)
                waiting = []
            if not waiting:
                begin = offset
            if alone:
                length = _aligned(-(-end // -(-end // block_size)))
                for start in range(0, end, length):
                    first = max(start, lead)
                    piece = Segment(name, first - lead, min(start + length, end) - first, first - start)
                    self._close(pool, offset + start, [piece])
            elif count:
                waiting.append(Segment(name, 0, count, offset - begin + lead))
            offset += _aligned(end)
        if waiting:
            self._close(pool, begin, waiting)
        self.sizes[pool] = offset

    def _close(self, pool: Pool, begin: int, segments: list[Segment]) -> None:
        size = segments[-1].at + segments[-1].count
        size = size if len(segments) == 1 else _aligned(size)
        self.blocks.append(Block(len(self.blocks), pool, begin, begin + size, tuple(segments)))


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
