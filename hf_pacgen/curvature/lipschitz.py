"""ρ, the Lipschitz constant of the Hessian in the box around the weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.config import ScoreConfig
from hf_pacgen.curvature.diagonal_sums import zeros_like
from hf_pacgen.curvature.hvp import HessianProduct, take_gradients
from hf_pacgen.data.objective import Objective
from hf_pacgen.distributed.shards import Shards, local
from hf_pacgen.model.displacement import (
    BoxDirection,
    Direction,
    RademacherDirection,
    SavedWeights,
    TensorDirection,
    chunks,
)
from hf_pacgen.model.parameters import dense
from hf_pacgen.results.lipschitz import LipschitzEstimate

__all__ = ["TOLERANCE", "estimate_lipschitz"]

TOLERANCE = 0.05
"""Relative change of the norm in the last Lanczos step below which it counts as converged."""


def estimate_lipschitz(
    objective: Objective,
    config: ScoreConfig,
    *,
    saved: SavedWeights,
    tick: Callable[[], Any] = lambda: None,
) -> LipschitzEstimate:
    """max over a few random u in the box of ‖(H(w+u) - H(w)) v‖/‖u‖, v by the Lanczos process.

    The difference of Hessians is symmetric but indefinite, so the largest |eigenvalue| is wanted: Lanczos
    (without reorthogonalization, which the extreme eigenvalues do not need) finds it in a few steps with
    three vectors.  Directions are shared out over processes.

    Args:
        objective: an inspected objective.
        config: γ, ε, and the numbers of directions, iterations and batches.
        saved: a copy of the weights.
        tick: called after every iteration and batch.

    Raises:
        ValueError: a product in the box is not finite.
    """
    processes, offsets = objective.batches.processes, objective.shards.offsets
    found: dict[int, tuple[float, int, bool, int]] = {}
    used = 0
    with processes.together():
        counted = ((i, b) for i, b in objective.batches.every() if objective.has_units(b))
        batches = list(itertools.islice(counted, config.lipschitz_batches))
        used = len(batches)
        # a norm within a few percent will do, so longer steps (fewer repeats) than elsewhere
        product = HessianProduct(
            objective, config.hvp, saved=saved, displacement=config.displacement, asymmetry=0.03, sparse=True
        )
        for direction in range(processes.rank, config.lipschitz_directions, processes.size):
            shift = BoxDirection(
                config.seed, "box", direction, gamma=config.gamma, epsilon=config.epsilon, offsets=offsets
            )
            difference = _HessianDifference(product, batches, shift, tick)
            vector = difference.start(RademacherDirection(config.seed, "lanczos", direction, offsets=offsets))
            norm, steps, converged = _lanczos_norm(difference, vector, config.lipschitz_iterations)
            del vector
            saved.restore()
            found[direction] = (norm / _norm(shift, objective), steps, converged, difference.num_hvps)
    merged = {key: value for part in processes.gather(found) for key, value in part.items()}
    rows = [merged[direction] for direction in sorted(merged)]
    best = max(rows, key=lambda row: row[0])
    return LipschitzEstimate(
        value=best[0],
        ratios=tuple(row[0] for row in rows),
        iterations=tuple(row[1] for row in rows),
        batches=used,
        converged=best[2],
        num_hvps=sum(row[3] for row in rows),
    )


class _HessianDifference:
    """v ↦ (H(w+u) - H(w)) v of the mean loss over some batches."""

    def __init__(
        self, product: HessianProduct, batches: list[tuple[int, Any]], shift: Direction, tick: Callable[[], Any]
    ) -> None:
        self.product, self.batches, self.shift, self.tick = product, batches, shift, tick
        self.units = sum(product.objective.count_units(batch, index) for index, batch in batches)
        if self.units == 0:
            raise ValueError(
                f"The batches of ρ (lipschitz_batches={len(batches)}) have no loss unit: expected at least "
                "one labeled token or example. Check the number of units that loss_fn returns, or raise "
                "lipschitz_batches."
            )
        self.num_hvps = 0

    def start(self, fallback: Direction) -> dict[str, Tensor]:
        """A unit vector that leans on the largest eigenvalues: ∇L(w+u) - ∇L(w), which is ∫ H(w+tu) u dt.

        It costs two gradients and saves more iterations than a random start would need to find as much.
        Where it vanishes, the fallback is taken.
        """
        objective, saved = self.product.objective, self.product.saved
        self.product.start_at(0.03)
        for index, batch in self.batches:
            for sign, at in ((1.0, [(self.shift, 1.0)]), (-1.0, [])):
                saved.displace(at)  # type: ignore[union-attr]
                with objective.sparse_embeddings():
                    total = objective.loss(batch, index).total
                if total.requires_grad:
                    (total * sign).backward()
                del total  # or its graph would be there beside the next
        vector = {name: dense(gradient) for name, gradient in take_gradients(objective).items()}
        for name, parameter in objective.parameters.items():
            if name not in vector or vector[name].dtype != _wide(parameter):
                vector[name] = zeros_like(parameter) if name not in vector else vector[name].to(_wide(parameter))
        length = math.sqrt(_dot(vector, vector, objective.shards))
        if length == 0 or not math.isfinite(length):
            for name, value in vector.items():
                for offset, (piece, weights) in chunks(value, local(objective.parameters[name]).detach()):
                    piece.copy_(fallback.piece(name, offset, weights))
            length = math.sqrt(objective.num_parameters)
        _scale(vector, 1 / length)
        return vector

    def add(self, vector: dict[str, Tensor], out: dict[str, Tensor]) -> None:
        """Add the product with a unit vector to ``out``."""
        for index, batch in self.batches:
            for sign, at in ((1.0, [(self.shift, 1.0)]), (-1.0, [])):
                values, _ = self.product(batch, index, TensorDirection(vector), norm=1.0, at=at)
                for name, value in values.items():
                    out[name].add_(value, alpha=sign / self.units)
                self.num_hvps += 1
                del values  # not beside the next product
            self.tick()


def _lanczos_norm(operator: _HessianDifference, vector: dict[str, Tensor], iterations: int) -> tuple[float, int, bool]:
    """Largest |eigenvalue| of a symmetric operator by the three-term Lanczos recurrence from a unit vector."""
    previous: dict[str, Tensor] | None = None
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    norm = last = 0.0
    shards = operator.product.objective.shards
    for _ in range(min(iterations, operator.product.objective.num_parameters)):
        if previous is None:
            image = {name: torch.zeros_like(v) for name, v in vector.items()}
        else:
            image = previous
            _scale(image, -off_diagonal[-1])
        operator.add(vector, image)
        alpha = _dot(vector, image, shards)
        if not math.isfinite(alpha):
            raise ValueError(
                "A Hessian-vector product in the box around the weights is not finite, so there is no ρ: expected "
                "finite numbers. Load the weights in float32 or bfloat16 if they are float16, which ends at 65504; "
                "or make gamma and epsilon smaller."
            )
        for name, value in image.items():
            value.add_(vector[name], alpha=-alpha)
        diagonal.append(alpha)
        beta = math.sqrt(_dot(image, image, shards))
        last, norm = norm, _tridiagonal_norm(diagonal, off_diagonal)
        if beta <= 1e-6 * norm or beta == 0:
            return norm, len(diagonal), True  # the Krylov space is exhausted
        off_diagonal.append(beta)
        _scale(image, 1 / beta)
        previous, vector = vector, image
    return norm, len(diagonal), abs(norm - last) <= TOLERANCE * norm


def _tridiagonal_norm(diagonal: list[float], off_diagonal: list[float]) -> float:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if off_diagonal:
        side = torch.tensor(off_diagonal, dtype=torch.float64)
        matrix = matrix + torch.diag(side, 1) + torch.diag(side, -1)
    return torch.linalg.eigvalsh(matrix).abs().max().item()


def _wide(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)


def _scale(vectors: dict[str, Tensor], factor: float) -> None:
    for vector in vectors.values():
        vector.mul_(factor)


def _dot(a: dict[str, Tensor], b: dict[str, Tensor], shards: Shards) -> float:
    total = 0.0
    for name in a:
        for _, (x, y) in chunks(a[name], b[name]):
            total += torch.dot(x.reshape(-1), y.reshape(-1)).item()
    return shards.sum(total)


def _norm(direction: Direction, objective: Objective) -> float:
    squares = 0.0
    for name, parameter in objective.parameters.items():
        for start, (weights,) in chunks(local(parameter).detach()):
            squares += torch.linalg.vector_norm(direction.piece(name, start, weights)).item() ** 2
    return math.sqrt(objective.shards.sum(squares))
