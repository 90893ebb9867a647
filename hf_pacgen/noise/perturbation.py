"""Displace weights and restore them bit for bit."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from hf_pacgen.curvature.model_state import unwrap
from hf_pacgen.noise.distributions import NoiseDistribution
from hf_pacgen.noise.layout import Block
from hf_pacgen.noise.random_bits import rademacher, rademacher_rows, stream_key, uniform, uniform_rows
from hf_pacgen.noise.twins import Perturbation, ScaleFunction
from hf_pacgen.score import neighborhood
from hf_pacgen.sharding import Shards, is_sharded, local, part_like

__all__ = [
    "BoxDirection",
    "Direction",
    "Perturbation",
    "RademacherDirection",
    "Rows",
    "SavedWeights",
    "TensorDirection",
    "check_scale",
    "chunks",
    "perturbed",
    "scaled_noise",
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
    """A displacement uniform in the box of half-width N_i = γ|w_i| + ε; ``offsets`` as for signs."""

    def __init__(self, *key: str | int, gamma: float, epsilon: float, offsets: Mapping[str, int] | None = None) -> None:
        self.key, self.gamma, self.epsilon, self.offsets = key, gamma, epsilon, offsets or {}

    def piece(self, name: str, start: int, weights: Tensor) -> Tensor:
        """The displacements of a piece of the parameter ``name``."""
        start += self.offsets.get(name, 0)
        unit = uniform(
            stream_key(*self.key, name), weights.numel(), start=start, dtype=_wide(weights), device=weights.device
        )
        return self._scaled(unit.view(weights.shape), weights)

    def rows(self, name: str, rows: Tensor, weights: Tensor) -> Tensor:
        """The displacements of some rows of the matrix ``name``."""
        unit = uniform_rows(stream_key(*self.key, name), rows, weights.shape[1], dtype=_wide(weights))
        return self._scaled(unit, weights)

    def _scaled(self, unit: Tensor, weights: Tensor) -> Tensor:
        return unit.mul_(neighborhood(weights.to(unit.dtype), gamma=self.gamma, epsilon=self.epsilon))


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
        lazily: whether each of the others is copied when it is first displaced, and read but once for both.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], *, by_rows: Collection[str] = (), lazily: bool = False
    ) -> None:
        self.parameters, self.by_rows = parameters, frozenset(by_rows)
        eager = () if lazily else parameters.keys() - self.by_rows
        self.copy = {name: p.detach().clone() for name, p in parameters.items() if name in eager}
        self._displaced: set[str] = set()
        """Names of parameters that are displaced as a whole."""
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
        self._restore_rows()
        self._terms = terms
        for name in self.parameters:
            if whole or name not in self.by_rows:
                self._displace_whole(name)
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
        self._restore_rows()
        for name in self._displaced:
            self.parameters[name].detach().copy_(self.copy[name])
        self._displaced.clear()
        torch.clear_autocast_cache()

    def _displace_whole(self, name: str) -> None:
        weights = self.parameters[name].detach()
        if name not in self.copy:
            self.copy[name] = weights.clone()
        self._displaced.add(name)
        for start, (piece, kept) in chunks(weights, self.copy[name]):
            *first, (direction, scale) = self._terms
            for other, factor in first:
                kept = torch.add(kept, other.piece(name, start, kept), alpha=factor)
            displacement = direction.piece(name, start, kept)
            if displacement.dtype == piece.dtype and displacement.shape == piece.shape:
                torch.add(kept, displacement, alpha=scale, out=piece)  # one pass, not two
            else:
                piece.copy_(torch.add(kept, displacement, alpha=scale))

    def _restore_rows(self) -> None:
        for name, parts in self._rows.items():
            for rows, kept in parts:
                self.parameters[name].detach().index_copy_(0, rows, kept)
        self._rows.clear()
        self._terms = ()
        for name in self._displaced & self.by_rows:  # so that their rows can be displaced from now on
            self.parameters[name].detach().copy_(self.copy[name])
            self._displaced.discard(name)


def _wide(weights: Tensor) -> torch.dtype:
    return torch.promote_types(weights.dtype, torch.float32)


@contextmanager
def perturbed(
    model: nn.Module,
    noise_scale: float | Mapping[str, Tensor],
    *,
    distribution: NoiseDistribution | str = NoiseDistribution.UNIFORM,
    seed: int,
    gamma: float = 0.1,
    epsilon: float = 0.1,
) -> Iterator[nn.Module]:
    """The model with noise u on its trainable weights; on the way out they are what they were, bit for bit.

    Args:
        model: on its device; tied weights get one noise, frozen ones none.  Where it is sharded by ``fully_shard``
            each process has its part of the noise, and all must be here together.
        noise_scale: σ, for all weights or by parameter name (then other parameters stay as they are): the
            half-width of "uniform", the standard deviation before truncation of the others.
        distribution: "uniform" (256 levels), "truncated_normal" (to N_i = γ|w_i| + ε) or "normal".
        seed: u is a function of the seed and of the parameters' names; no other random state is touched.
        gamma, epsilon: of N_i.

    Raises:
        ValueError: nothing to perturb, a σ that is negative or not finite, an unknown name, another shape, weights
            that are sharded otherwise than by ``fully_shard``.

    >>> layer = nn.Linear(2, 2)
    >>> before = layer.weight.detach().clone()
    >>> with perturbed(layer, 0.1, seed=0):
    ...     print(0 < (layer.weight - before).abs().max().item() <= 0.1)
    True
    >>> bool((layer.weight == before).all())
    True
    """
    shards = Shards(unwrap(model))
    parameters = {name: p for name, p in shards.model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameters, so there is nothing to perturb: expected at least "
            "one with requires_grad=True."
        )
    noise, scale = scaled_noise(
        parameters, noise_scale, distribution=distribution, gamma=gamma, epsilon=epsilon, shards=shards
    )
    noise.draw(scale, seed, "perturbed")
    try:
        noise.apply()
        yield model
    finally:
        noise.restore()


def scaled_noise(
    parameters: Mapping[str, Tensor],
    noise_scale: float | Mapping[str, Tensor],
    *,
    distribution: NoiseDistribution | str,
    gamma: float,
    epsilon: float,
    shards: Shards | None = None,
) -> tuple[Perturbation, ScaleFunction]:
    """Noise on parameters, and the function that gives its level: a number for all, or tensors by name for some.

    Raises:
        ValueError: a level that is negative or not finite, an unknown name, another shape.
    """
    check_scale("noise_scale", noise_scale, parameters, shards)
    scales: Mapping[str, Tensor] = {}
    if isinstance(noise_scale, Mapping):
        parameters = {name: p for name, p in parameters.items() if name in noise_scale}
        offsets = shards.offsets if shards is not None else {}
        scales = {
            name: _level_here(noise_scale[name].detach().to(p.device), p, offsets.get(name, 0))
            for name, p in parameters.items()
        }
    noise = Perturbation(parameters, distribution=distribution, gamma=gamma, epsilon=epsilon, shards=shards)

    def scale(block: Block, weights: Tensor) -> Tensor:
        if isinstance(noise_scale, Mapping):
            return noise.layout.gather(block, scales, weights.dtype).clone()
        return torch.full_like(weights, noise_scale)

    return noise, scale


def _level_here(sigma: Tensor, parameter: Tensor, offset: int) -> Tensor:
    """The part of a level that belongs to this process's part of a parameter."""
    if sigma.numel() == 1 and not is_sharded(sigma):
        return sigma.reshape(()).expand(local(parameter).shape)
    return part_like(sigma, parameter, offset)


def check_scale(
    what: str, value: float | Mapping[str, Tensor], parameters: Mapping[str, Tensor], shards: Shards | None = None
) -> None:
    """Raise unless ``value`` is a finite number >= 0, or tensors of such numbers by the names of some parameters.

    With ``shards`` all processes raise if one has to.
    """
    if not isinstance(value, Mapping):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (is_number and math.isfinite(value) and value >= 0):
            raise ValueError(f"{what} must be a finite number >= 0, or tensors by name; got {value!r}.")
        return
    unknown = sorted(map(str, value.keys() - parameters.keys()))
    if unknown or not value:
        problem = f"names {unknown[:5]}, which are no trainable parameters" if unknown else "names no parameter"
        raise ValueError(
            f"{what} {problem}. Take the names from model.named_parameters(), where tied weights have one name."
        )
    for name, sigma in value.items():
        if sigma.numel() != 1 and sigma.shape != parameters[name].shape:
            raise ValueError(
                f"{what}[{name!r}] must have shape {tuple(parameters[name].shape)}, like the parameter, or one "
                f"element; got {tuple(sigma.shape)}."
            )
        here = local(sigma)
        bad = float(not bool((here.isfinite() & (here >= 0)).all()))
        if (shards.sum(bad) if shards is not None else bad) > 0:
            raise ValueError(f"{what}[{name!r}] must be finite and >= 0 everywhere.")
