"""Lanczos for vectors that are tensors by parameter name: one process, over all earlier vectors or the last two."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Vector = dict[str, Tensor]
# (v, out) -> out + H v, in buffers that the caller may change; an empty out is 0
Operator = Callable[[Vector, Vector], Vector]
BLOCK = 8  # vectors that are stored together, so that a projection is a few matrix products and not a loop of dots
# relative size below which what is left of H q after orthogonalization is rounding
BREAKDOWN = {torch.float64: 1e-11, torch.float32: 1e-6}
CHUNK = 1 << 20  # elements of a dot product at a time: float32 sums of more lose digits


class Space(Protocol):
    """What the process has to know of the space its vectors live in."""

    def total(self, tensor: Tensor) -> Tensor:
        """A sum over the elements that are here, added up over all parts of the vectors."""


class Whole:
    """A space whose vectors are all here."""

    def total(self, tensor: Tensor) -> Tensor:
        return tensor


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor], space: Space) -> float:
    """Inner product over all parts of two vectors; partial sums add in float64."""
    found = 0.0
    for name, x in a.items():
        for u, v in zip(x.reshape(-1).split(CHUNK), b[name].reshape(-1).split(CHUNK), strict=True):
            found += torch.dot(u, v).item()
    return float(space.total(torch.tensor(found, dtype=torch.float64)))


class _Vectors:
    """Orthonormal vectors found so far, in a space."""

    def __init__(self, space: Space | None = None) -> None:
        self.space, self.size = space or Whole(), 0

    def __len__(self) -> int:
        return self.size


class Recent(_Vectors):
    """The last two of the vectors: all that exact arithmetic needs, and enough for extreme eigenvalues.

    The buffers of the one before are used for the next product, so there are three vectors in all.
    """

    def __init__(self, space: Space | None = None) -> None:
        super().__init__(space)
        self.last: Vector = {}
        self._before: Vector | None = None
        self._link = 0.0

    def append(self, vector: Vector) -> Vector:
        """Keep a unit vector."""
        self._before, self.last = self.last or None, vector
        self.size += 1
        return vector

    def begin(self) -> Vector:
        """-β times the vector before the last, to which the product is added."""
        # added up in the old vector's own memory, which is needed no more
        if self._before is None:
            return {name: torch.zeros_like(value) for name, value in self.last.items()}
        for value in self._before.values():
            value.mul_(-self._link)
        return self._before

    def project_out(self, image: Vector) -> Tensor:
        """Take the last vector out of an image that has none of the one before; returns the coefficients."""
        alpha = dot(self.last, image, self.space)
        for name, value in image.items():
            value.add_(self.last[name], alpha=-alpha)
        coefficients = torch.zeros(self.size, dtype=torch.float64)
        coefficients[-1] = alpha
        if self.size > 1:
            coefficients[-2] = self._link
        return coefficients

    def norm(self, vector: Vector) -> float:
        """Euclidean norm, remembered as β of the next step."""
        self._link = math.sqrt(dot(vector, vector, self.space))
        return self._link


class Basis(_Vectors):
    """All orthonormal vectors, made like the tensors in ``like``; of each name, ``BLOCK`` are the rows of a matrix."""

    def __init__(self, like: Mapping[str, Tensor], space: Space | None = None) -> None:
        super().__init__(space)
        self.like = dict(like)
        self.blocks: list[Vector] = []

    def append(self, vector: Mapping[str, Tensor]) -> Vector:
        """Store a unit vector that is orthogonal to the others; returns views of what is stored."""
        row = self.size % BLOCK
        # blocks are made when they are needed: how many steps there will be is not known
        if row == 0:
            self.blocks.append({name: value.new_empty((BLOCK, value.numel())) for name, value in self.like.items()})
        stored = {name: rows[row].view(self.like[name].shape) for name, rows in self.blocks[-1].items()}
        for name, value in vector.items():
            stored[name].copy_(value)
        self.size += 1
        return stored

    def begin(self) -> Vector:
        return {}  # all earlier vectors are taken out afterwards

    def project_out(self, vector: Vector) -> Tensor:
        """Make a vector orthogonal to all stored ones, in place; returns the coefficients, shape (size,), float64."""
        total = torch.zeros(self.size, dtype=torch.float64)
        # twice, since one pass of classical Gram-Schmidt leaves what cancellation lost (Giraud et al. 2005)
        for _ in range(2):
            coefficients = torch.cat([total.new_zeros(0), *(self._dots(vector, block) for block in self._filled())])
            coefficients = self.space.total(coefficients)
            self._add(vector, coefficients, -1)
            total += coefficients
        return total

    def combine(self, coefficients: Tensor) -> Vector:
        """Σ coefficient · vector."""
        out = {name: torch.zeros_like(value) for name, value in self.like.items()}
        self._add(out, coefficients, 1)
        return out

    def norm(self, vector: Mapping[str, Tensor]) -> float:
        """Euclidean norm over all tensors."""
        squares = sum(torch.linalg.vector_norm(v).item() ** 2 for v in vector.values())
        return math.sqrt(float(self.space.total(torch.tensor(squares, dtype=torch.float64))))

    def _filled(self) -> Iterator[Vector]:
        for number, block in enumerate(self.blocks):
            yield {name: rows[: self.size - number * BLOCK] for name, rows in block.items()}

    def _dots(self, vector: Vector, block: Vector) -> Tensor:
        # partial sums of the parameters add in float64
        return sum((rows @ vector[name].view(-1)).double().cpu() for name, rows in block.items())  # type: ignore[return-value]

    def _add(self, out: Vector, coefficients: Tensor, sign: int) -> None:
        parts = coefficients.split(BLOCK) if len(coefficients) else ()  # nothing splits into one empty part
        for block, part in zip(self._filled(), parts, strict=True):
            for name, rows in block.items():
                out[name].view(-1).addmv_(rows.t(), part.to(rows), alpha=sign)


@dataclass
class Krylov:
    """H Q = Q h + β q eᵀ: what Lanczos has learned of a symmetric H."""

    basis: Basis | Recent  # Q
    h: Tensor  # QᵀHQ as computed, shape (steps, steps); exactly symmetric products would make it tridiagonal
    beta: float  # norm of what is left of the last product; 0 where the space is exhausted

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Ritz values in ascending order, and the coefficients of their unit vectors, one a column."""
        return torch.linalg.eigh((self.h + self.h.t()) / 2)

    def norm(self) -> float:
        """The largest |Ritz value|, which bounds ‖H‖ from below."""
        return torch.linalg.eigvalsh(self.h).abs().max().item()

    def residuals(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """‖H y - θ y‖ of Ritz vectors: the part that more steps remove, and the part that is noise of the products."""
        # with s the coefficients of y, H y - θ y = Q A s + β s_last q, where A is the antisymmetric part of h, which
        # exact products would not have: this costs no further product
        noise = torch.linalg.vector_norm((self.h - self.h.t()) @ coefficients / 2, dim=0)
        return self.beta * coefficients[-1].abs(), noise


def lanczos(
    operator: Operator,
    start: Vector,
    *,
    basis: Basis | Recent,
    iterations: int,
    dimension: int,
    fresh: Callable[[int], Vector] | None = None,
    stop: Callable[[Krylov, bool], bool] = lambda krylov, exhausted: False,
    deflated: Basis | None = None,
) -> Krylov:
    """Lanczos from a vector.

    Args:
        operator, start: H, called with unit vectors, and any vector, which is overwritten.
        basis: an empty :class:`Basis`, which keeps every product orthogonal to all that came before (eigenvectors,
            quadratures), or an empty :class:`Recent`, which holds three vectors in all (a norm in a few steps).
        iterations, dimension: most steps, and of the space: after as many steps all is known.
        fresh: a new start by number, for where the Krylov space is exhausted; without it the process ends there.
        stop: asked after every step, with whether the step exhausted the space.
        deflated: vectors to which everything is kept orthogonal.

    Raises:
        FloatingPointError: a product is not finite.
    """
    krylov = Krylov(basis, torch.zeros(0, 0, dtype=torch.float64), 0.0)
    columns: list[Tensor] = []
    links: list[float] = []
    vector: Vector | None = _unit(start, basis, deflated)
    while vector is not None:
        vector = basis.append(vector)
        image = operator(vector, basis.begin())
        if deflated is not None:
            deflated.project_out(image)
        columns.append(basis.project_out(image))
        h = _assemble(columns, links)
        left, scale = basis.norm(image), h.abs().max().item()
        if not math.isfinite(left + scale):
            raise FloatingPointError(f"The product in Lanczos step {len(basis)} is not finite.")
        # what is left of inexact products is never 0: their noise shows in the part of h that should vanish
        noise = torch.linalg.matrix_norm(h - h.t(), 2).item()
        exhausted = left <= max(_rounding(image) * scale, noise) or len(basis) == dimension
        krylov = Krylov(basis, h, 0.0 if exhausted else left)
        if stop(krylov, exhausted) or len(basis) in (iterations, dimension) or (exhausted and fresh is None):
            break
        links.append(krylov.beta)
        # a multiple eigenvalue has one copy in each Krylov space: others are found from a fresh start
        vector = _unit(fresh(len(basis)), basis, deflated) if exhausted and fresh is not None else _scaled(image, left)
    return krylov


def _assemble(columns: list[Tensor], links: list[float]) -> Tensor:
    # as computed, not made symmetric: what differs from its transpose is the noise of the products
    h = torch.zeros(len(columns), len(columns), dtype=torch.float64)
    for j, column in enumerate(columns):
        h[: j + 1, j] = column
        if j < len(links):
            h[j + 1, j] = links[j]
    return h


def _unit(vector: Vector, basis: Basis | Recent, deflated: Basis | None) -> Vector | None:
    # orthogonal to what there is; None where nothing is left
    before = basis.norm(vector)
    for others in (deflated, basis):
        if others is not None and len(others):
            others.project_out(vector)
    after = basis.norm(vector)
    return _scaled(vector, after) if after > 1e3 * _rounding(vector) * before else None


def _scaled(vector: Vector, by: float) -> Vector:
    for value in vector.values():
        value.mul_(1 / by)
    return vector


def _rounding(vector: Vector) -> float:
    return max(BREAKDOWN.get(value.dtype, BREAKDOWN[torch.float32]) for value in vector.values())
