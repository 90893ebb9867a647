"""Displace weights and restore them bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from hf_pacgen.curvature.model_state import unwrap
from hf_pacgen.noise.distributions import NoiseDistribution
from hf_pacgen.noise.layout import Block
from hf_pacgen.noise.random_bits import rademacher, rademacher_rows, stream_key, uniform, uniform_rows
from hf_pacgen.noise.twins import Perturbation
from hf_pacgen.score import neighborhood

__all__ = [
    "BoxDirection",
    "Direction",
    "Perturbation",
    "RademacherDirection",
    "Rows",
    "SavedWeights",
    "TensorDirection",
    "chunks",
    "perturbed",
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
    """Independent signs ±1 for every weight, from a counter-based stream: nothing is stored."""

    def __init__(self, *key: str | int) -> None:
        self.key = key

    def piece(self, name: str, start: int, weights: Tensor) -> Tensor:
        """The signs of a piece of the parameter ``name``."""
        signs = rademacher(
            stream_key(*self.key, name), weights.numel(), start=start, dtype=_wide(weights), device=weights.device
        )
        return signs.view(weights.shape)

    def rows(self, name: str, rows: Tensor, weights: Tensor) -> Tensor:
        """The signs of some rows of the matrix ``name``."""
        return rademacher_rows(stream_key(*self.key, name), rows, weights.shape[1], dtype=_wide(weights))


class BoxDirection:
    """A displacement uniform in the box of half-width N_i = γ|w_i| + ε."""

    def __init__(self, *key: str | int, gamma: float, epsilon: float) -> None:
        self.key, self.gamma, self.epsilon = key, gamma, epsilon

    def piece(self, name: str, start: int, weights: Tensor) -> Tensor:
        """The displacements of a piece of the parameter ``name``."""
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


class SavedWeights:
    """A copy of the weights, from which they are displaced and to which they return bit for bit.

    Displacements are always computed from the copy and never undone by subtraction: 200 cycles
    of adding and subtracting drift by 1 % in bfloat16.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = parameters
        self.copy = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._displaced: dict[str, Tensor | None] = {}
        """Names of displaced parameters, with the rows if only those are."""

    def __enter__(self) -> SavedWeights:
        return self

    def __exit__(self, *exc: object) -> None:
        self.restore()

    @torch.no_grad()
    def displace(self, terms: Sequence[tuple[Direction, float]], rows: Rows | None = None) -> None:
        """Set the weights to w + Σ scale · direction; of the matrices in ``rows``, only those rows."""
        if not terms:
            return self.restore()
        for name, parameter in self.parameters.items():
            weights, saved = parameter.detach(), self.copy[name]
            only = None if rows is None else rows.get(name)
            if only is None:
                self._displaced[name] = None
                for start, (piece, kept) in chunks(weights, saved):
                    *first, (direction, scale) = terms
                    for other, factor in first:
                        kept = torch.add(kept, other.piece(name, start, kept), alpha=factor)
                    displacement = direction.piece(name, start, kept)
                    if displacement.dtype == piece.dtype and displacement.shape == piece.shape:
                        torch.add(kept, displacement, alpha=scale, out=piece)  # one pass, not two
                    else:
                        piece.copy_(torch.add(kept, displacement, alpha=scale))
            else:
                if self._displaced.get(name, only) is not only:
                    self._restore(name)
                self._displaced[name] = only
                kept = total = saved.index_select(0, only)
                for direction, scale in terms:
                    total = torch.add(total, direction.rows(name, only, kept), alpha=scale)
                weights.index_copy_(0, only, total.to(weights.dtype))
        # autocast caches casts of the weights and would go on using the old ones
        torch.clear_autocast_cache()

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back, bit for bit."""
        for name in list(self._displaced):
            self._restore(name)
        torch.clear_autocast_cache()

    def _restore(self, name: str) -> None:
        weights, saved, rows = self.parameters[name].detach(), self.copy[name], self._displaced[name]
        if rows is None:
            weights.copy_(saved)
        else:
            weights.index_copy_(0, rows, saved.index_select(0, rows))
        del self._displaced[name]


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
        model: on its device; tied weights get one noise, frozen ones none.
        noise_scale: σ, for all weights or by parameter name (then other parameters stay as they are): the
            half-width of "uniform", the standard deviation before truncation of the others.
        distribution: "uniform" (256 levels), "truncated_normal" (to N_i = γ|w_i| + ε) or "normal".
        seed: u is a function of the seed and of the parameters' names; no other random state is touched.
        gamma, epsilon: of N_i.

    Raises:
        ValueError: nothing to perturb, a σ that is negative or not finite, an unknown name, another shape.

    >>> layer = nn.Linear(2, 2)
    >>> before = layer.weight.detach().clone()
    >>> with perturbed(layer, 0.1, seed=0):
    ...     print(0 < (layer.weight - before).abs().max().item() <= 0.1)
    True
    >>> bool((layer.weight == before).all())
    True
    """
    parameters = {name: p for name, p in unwrap(model).named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameters, so there is nothing to perturb: expected at least "
            "one with requires_grad=True."
        )
    if isinstance(noise_scale, Mapping):
        _check_scales(noise_scale, parameters)
        parameters = {name: p for name, p in parameters.items() if name in noise_scale}
        scales = {name: noise_scale[name].detach().expand_as(p) for name, p in parameters.items()}
    elif isinstance(noise_scale, bool) or not (math.isfinite(noise_scale) and noise_scale >= 0):
        raise ValueError(f"noise_scale must be a finite number >= 0, or tensors by name; got {noise_scale!r}.")
    noise = Perturbation(parameters, distribution=distribution, gamma=gamma, epsilon=epsilon)

    def scale(block: Block, weights: Tensor) -> Tensor:
        if isinstance(noise_scale, Mapping):
            return noise.layout.gather(block, scales, weights.dtype).clone()
        return torch.full_like(weights, noise_scale)

    noise.draw(scale, seed, "perturbed")
    try:
        noise.apply()
        yield model
    finally:
        noise.restore()


def _check_scales(scales: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    unknown = sorted(scales.keys() - parameters.keys())
    if unknown:
        raise ValueError(
            f"noise_scale names {unknown[:5]}, which are no trainable parameters. "
            "Take the names from model.named_parameters(), where tied weights have one name."
        )
    for name, sigma in scales.items():
        if sigma.numel() != 1 and sigma.shape != parameters[name].shape:
            raise ValueError(
                f"noise_scale[{name!r}] must have shape {tuple(parameters[name].shape)}, like the parameter, or one "
                f"element; got {tuple(sigma.shape)}."
            )
        if not bool((sigma.isfinite() & (sigma >= 0)).all()):
            raise ValueError(f"noise_scale[{name!r}] must be finite and >= 0 everywhere.")
