"""Directions in the space of the weights, and weights that are displaced along them and come back bit for bit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from hf_pacgen.maths.counter_rng import rademacher, rademacher_rows, stream_key, uniform, uniform_rows
from hf_pacgen.maths.score import neighborhood

__all__ = [
    "BoxDirection",
    "Direction",
    "RademacherDirection",
    "Rows",
    "SavedWeights",
    "TensorDirection",
    "Terms",
    "WithoutSpans",
    "chunks",
]

CHUNK = 1 << 20
"""Elements treated at a time: temporaries stay in the cache, and a large embedding makes no large ones."""


def chunks(*tensors: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Aligned flat pieces of tensors of one shape, with the index of the first element.

    Tensors that are not all contiguous come in one piece, in their own shape.
    """
    if all(t.is_contiguous() for t in tensors):
        flat = [t.view(-1) for t in tensors]
        for start in range(0, flat[0].numel(), CHUNK):
            yield start, tuple(t[start : start + CHUNK] for t in flat)
    else:
        yield 0, tensors


class Direction(Protocol):
    """A vector in the space of the weights, made piece by piece where it is needed."""

    def piece(self, name: str, start: int, weights: Tensor) -> Tensor:
        """The elements from ``start`` on that belong to ``weights``, a piece of the parameter ``name``."""
        ...

    def rows(self, name: str, rows: Tensor, weights: Tensor) -> Tensor:
        """The elements that belong to ``weights``, some rows of the matrix ``name``."""
        ...


class RademacherDirection:
    """Independent signs ±1 for every weight, from a counter-based stream: nothing is stored.

    Args:
        *key: of the stream.
        offsets: index in the whole weight at which the part that is here begins, by name, where weights are sharded.
    """

    def __init__(self, *key: str | int, offsets: Mapping[str, int] | None = None) -> None:
        self.key, self.offsets = key, offsets or {}

    def piece(self, name: str, start: int, weights: Tensor) -> Tensor:
        """The signs of a piece of the parameter ``name``."""
        start += self.offsets.get(name, 0)
        signs = rademacher(
            stream_key(*self.key, name), weights.numel(), start=start, dtype=_wide(weights), device=weights.device
        )
        return signs.view(weights.shape)

    def rows(self, name: str, rows: Tensor, weights: Tensor) -> Tensor:
        """The signs of some rows of the matrix ``name``."""
        return rademacher_rows(stream_key(*self.key, name), rows, weights.shape[1], dtype=_wide(weights))


class BoxDirection:
    """A displacement uniform in the box of half-width N_i = γ|w_i| + ε, ε by parameter; ``offsets`` as for signs."""

    def __init__(
        self, *key: str | int, gamma: float, epsilons: Mapping[str, float], offsets: Mapping[str, int] | None = None
    ) -> None:
        self.key, self.gamma, self.epsilons, self.offsets = key, gamma, epsilons, offsets or {}

    def piece(self, name: str, start: int, weights: Tensor) -> Tensor:
        """The displacements of a piece of the parameter ``name``."""
        start += self.offsets.get(name, 0)
        unit = uniform(
            stream_key(*self.key, name), weights.numel(), start=start, dtype=_wide(weights), device=weights.device
        )
        return self._scaled(name, unit.view(weights.shape), weights)

    def rows(self, name: str, rows: Tensor, weights: Tensor) -> Tensor:
        """The displacements of some rows of the matrix ``name``."""
        unit = uniform_rows(stream_key(*self.key, name), rows, weights.shape[1], dtype=_wide(weights))
        return self._scaled(name, unit, weights)

    def _scaled(self, name: str, unit: Tensor, weights: Tensor) -> Tensor:
        return unit.mul_(neighborhood(weights.to(unit.dtype), gamma=self.gamma, epsilon=self.epsilons[name]))


class TensorDirection:
    """A direction that is stored, by parameter name."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def piece(self, name: str, start: int, weights: Tensor) -> Tensor:
        """A piece of the stored tensor."""
        tensor = self.tensors[name]
        if tensor.shape == weights.shape:
            return tensor
        return tensor.reshape(-1)[start : start + weights.numel()]

    def rows(self, name: str, rows: Tensor, weights: Tensor) -> Tensor:
        """Some rows of the stored matrix."""
        return self.tensors[name].index_select(0, rows)


class WithoutSpans:
    """A direction, but 0 in a span of elements of some parameters, by name: first and last, exclusive."""

    def __init__(
        self, direction: Direction, spans: Mapping[str, tuple[int, int]], offsets: Mapping[str, int] | None = None
    ) -> None:
        self.direction, self.spans, self.offsets = direction, spans, offsets or {}

    def piece(self, name: str, start: int, weights: Tensor) -> Tensor:
        """A piece of the direction."""
        values = self.direction.piece(name, start, weights)
        if name not in self.spans:
            return values
        begin = start + self.offsets.get(name, 0)
        first, last = (min(max(end - begin, 0), values.numel()) for end in self.spans[name])
        if first == last:
            return values
        values = values.clone(memory_format=torch.contiguous_format)
        values.view(-1)[first:last] = 0
        return values

    def rows(self, name: str, rows: Tensor, weights: Tensor) -> Tensor:
        """Some rows of the direction."""
        values = self.direction.rows(name, rows, weights)
        if name not in self.spans:
            return values
        starts = rows * weights.shape[1]
        inside = (starts >= self.spans[name][0]) & (starts < self.spans[name][1])
        return values.masked_fill(inside.unsqueeze(1), 0)


Rows = Mapping[str, Tensor]
"""For some matrices, the rows that matter; all others matter whole."""

Terms = Sequence[tuple[Direction, float]]
"""A displacement Σ scale · direction."""


class SavedWeights:
    """A copy of the weights, from which they are displaced and to which they return bit for bit.

    Displacements are always computed from the copy and never undone by subtraction: 200 cycles
    of adding and subtracting drift by 1 % in bfloat16.

    Args:
        parameters: by name.
        by_rows: names of matrices whose rows are displaced (and copied) only when :meth:`look_up` says that
            they are about to be read; the whole matrix is copied only if it is displaced as a whole.
        lazily: whether the others are copied when they are first displaced.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], *, by_rows: Collection[str] = (), lazily: bool = False
    ) -> None:
        self.parameters, self.by_rows = parameters, frozenset(by_rows)
        eager = () if lazily else parameters.keys() - self.by_rows
        self.copy = {name: p.detach().clone() for name, p in parameters.items() if name in eager}
        self._displaced: dict[str, None] = {}
        """Names of parameters that are displaced as a whole, in the order of ``parameters``."""
        self._rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
        """Displaced rows of the others, with their saved values."""
        self._terms: Terms = ()
        """What rows are displaced by."""

    def __enter__(self) -> SavedWeights:
        return self

    def __exit__(self, *exc: object) -> None:
        self.restore()

    @torch.no_grad()
    def displace(self, terms: Terms, *, whole: bool = False) -> None:
        """Set the weights to w + Σ scale · direction; with ``whole``, all rows of every matrix."""
        if not terms:
            return self.restore()
        if self._rows or self.by_rows:
            self._restore_rows()
        self._terms = terms
        *first, (direction, scale) = terms
        due = [name for name in self.parameters if whole or name not in self.by_rows]
        for name in due:  # all copies before any displacement: two names may share memory
            if name not in self.copy:
                self.copy[name] = self.parameters[name].detach().clone()
        for name in due:
            weights = self.parameters[name].detach()
            self._displaced[name] = None
            for start, (piece, kept) in chunks(weights, self.copy[name]):
                for other, factor in first:
                    kept = torch.add(kept, other.piece(name, start, kept), alpha=factor)
                displacement = direction.piece(name, start, kept)
                if displacement.dtype == piece.dtype and displacement.shape == piece.shape:
                    torch.add(kept, displacement, alpha=scale, out=piece)  # one pass, not two
                else:
                    piece.copy_(torch.add(kept, displacement, alpha=scale))
        # autocast caches casts of the weights and would go on using the old ones
        torch.clear_autocast_cache()

    @torch.no_grad()
    def look_up(self, name: str, indices: Tensor) -> None:
        """Displace the rows of a matrix that are about to be read, as far as they are not."""
        if not self._terms or name not in self.by_rows or name in self._displaced:
            return
        parts = self._rows.setdefault(name, [])
        rows = indices.reshape(-1).unique()
        for done, _ in parts:
            rows = rows[~torch.isin(rows, done)]
        if rows.numel():
            weights = self.parameters[name].detach()
            kept = total = weights.index_select(0, rows)
            parts.append((rows, kept))
            for direction, scale in self._terms:
                total = torch.add(total, direction.rows(name, rows, kept), alpha=scale)
            weights.index_copy_(0, rows, total.to(weights.dtype))

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back, bit for bit."""
        if self._rows or self.by_rows:
            self._restore_rows()
        self._terms = ()
        for name in self._displaced:
            self.parameters[name].detach().copy_(self.copy[name])
        self._displaced.clear()
        torch.clear_autocast_cache()

    def _restore_rows(self) -> None:
        for name, parts in self._rows.items():
            for rows, kept in parts:
                self.parameters[name].detach().index_copy_(0, rows, kept)
        self._rows.clear()
        self._terms = ()
        for name in [
            n for n in self._displaced if n in self.by_rows
        ]:  # so that their rows can be displaced from now on
            self.parameters[name].detach().copy_(self.copy[name])
            del self._displaced[name]


def _wide(weights: Tensor) -> torch.dtype:
    return torch.promote_types(weights.dtype, torch.float32)
