"""The space that vectors of the curvature live in: tensors by parameter name, whole or a process's part of each.

Nothing else in the curvature knows that weights may be sharded over processes, or that a batch reads few rows of an
embedding.  A vector is a ``dict[str, Tensor]`` of accumulators (at least float32); a :class:`Direction` is one that is
made piece by piece where it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from hf_pacgen.config import HVPMethod
from hf_pacgen.curvature.displacement import (
    BoxDirection,
    Direction,
    RademacherDirection,
    SavedWeights,
    WithoutSpans,
    chunks,
)
from hf_pacgen.data.losses import BatchLoss
from hf_pacgen.data.objective import Objective
from hf_pacgen.data.sharded_objective import ShardedObjective
from hf_pacgen.distributed.shards import local, part_like, shard_like
from hf_pacgen.maths.counter_rng import stream_key
from hf_pacgen.maths.score import EpsilonScale, half_width
from hf_pacgen.model.adapters import merged_sizes
from hf_pacgen.model.embeddings import dense, padding_rows, pick_rows
from hf_pacgen.model.precision import wide

__all__ = ["Vector", "WeightSpace", "zeros_like"]

Vector = dict[str, Tensor]


class WeightSpace:
    """The weights of an inspected objective, their displacements, gradients and vectors.

    As a context manager it lets weights be displaced, and puts them back, bit for bit, on the way out.  Copies are made
    when weights are first displaced.

    Args:
        objective: inspected; the hooks of ``objective.rows.watching()`` are in place.

    Attributes:
        weights: this process's part of every trainable weight.
        displace, restore: set the weights to w + Σ scale · direction, and put them back: see :class:`SavedWeights`.
        num_parameters: m, of the whole weights.
        is_whole: whether this process has all of every weight.
        has_second_derivatives: whether autograd can differentiate a gradient; it cannot through sharded weights.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._shards = objective.shards if isinstance(objective, ShardedObjective) else None
        self.num_parameters = objective.num_parameters
        self.resolved: dict[HVPMethod, HVPMethod] = {}
        """What stands for a method once its products were looked at."""
        self.is_whole = self.has_second_derivatives = self._shards is None
        self._padding = padding_rows(objective.model, objective.parameters)
        self._offsets = {} if self._shards is None else self._shards.offsets
        self.weights: Vector = {n: p if self.is_whole else local(p) for n, p in objective.parameters.items()}
        self.saved = SavedWeights(self.weights, by_rows=objective.rows.alone, lazily=True)
        self.displace, self.restore = self.saved.displace, self.saved.restore

    def __enter__(self) -> WeightSpace:
        self.objective.rows.on_read = self.saved.look_up
        return self

    def __exit__(self, *exc: object) -> None:
        self.objective.rows.on_read = None
        self.saved.restore()

    # --------------------------------------------------------------------------------------------------- vectors

    def zeros(self) -> Vector:
        """The vector 0."""
        return {name: zeros_like(w) for name, w in self.weights.items()}

    def zeros_type(self, name: str) -> torch.dtype:
        """The dtype of accumulators for a weight: its own, at least float32."""
        return wide(self.weights[name])

    def total(self, tensor: Tensor) -> Tensor:
        """A sum over the elements of this process, added up over all parts of the weights, in place."""
        return tensor if self._shards is None else self._shards.sum_(tensor)

    def _sum(self, value: float) -> float:
        return value if self._shards is None else self._shards.sum(value)

    def norm(self, vector: Mapping[str, Tensor]) -> float:
        """‖v‖, over all parts; partial sums add in float64."""
        # the values of a sparse gradient are all that is not 0
        stored = (v.values() if v.is_sparse else v for v in vector.values())
        return math.sqrt(self._sum(sum(torch.linalg.vector_norm(v).item() ** 2 for v in stored)))

    def signs(self, *key: str | int) -> RademacherDirection:
        """Independent signs ±1, the same on any number of processes."""
        return RademacherDirection(*key, offsets=self._offsets)

    def trained(self, direction: Direction) -> Direction:
        """A direction without the embeddings of padding, which get no gradient.

        Along them the derivative of the gradient is not symmetric: methods would differ, each by another half.
        """
        return WithoutSpans(direction, self._padding, self._offsets) if self._padding else direction

    def box(self, *key: str | int, gamma: float, epsilons: Mapping[str, float]) -> BoxDirection:
        """A displacement uniform in the box |u_i| ≤ γ|w_i| + ε, ε by parameter: see :meth:`half_widths`."""
        return BoxDirection(*key, gamma=gamma, epsilons=epsilons, offsets=self._offsets)

    def half_widths(self, epsilon: float, scale: EpsilonScale | str) -> dict[str, float]:
        """ε of every parameter, as a length.  The weights must not be displaced.

        In root mean squares it is a part of each tensor's; of a matrix B of an adapter W + BA, a part of what moves
        W + BA by the size of W (:func:`~hf_pacgen.model.adapters.merged_sizes`), if that is more.
        """
        reaches: Mapping[str, float | None] = {}
        if EpsilonScale(scale).facts.of_tensor:
            reaches = merged_sizes(self.objective.model, self.objective.parameters)
        if unread := sum(reach is None for reach in reaches.values()):
            self.objective.guard.note(
                f"The weights that {unread} adapter matrices are added to cannot be read, so their box is in "
                "proportion to the adapter alone, and K(η) may say little of them. Give epsilon as a length."
            )
        squares = [torch.linalg.vector_norm(w.detach(), dtype=wide(w)).double().square() for w in self.weights.values()]
        totals = self.total(torch.stack([square.cpu() for square in squares])).tolist()
        sizes = [p.numel() for p in self.objective.parameters.values()]
        return {
            name: half_width(epsilon, scale, total / max(size, 1), reaches.get(name) or 0.0)
            for name, total, size in zip(self.weights, totals, sizes, strict=True)
        }

    def gaussian(self, *key: str | int) -> Vector:
        """Independent standard normal numbers, the same on every process and device and in every precision."""
        vector = self.zeros()
        for name, value in vector.items():
            generator = torch.Generator().manual_seed(stream_key(*key, name) & (2**63 - 1))
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float32))
        return vector

    def stored(self, direction: Direction) -> Vector:
        """All elements of a direction, as a vector."""
        vector = self.zeros()
        for name, value in vector.items():
            for start, (piece, weights) in chunks(value, self.weights[name].detach()):
                piece.copy_(direction.piece(name, start, weights))
        return vector

    def length(self, direction: Direction) -> float:
        """‖v‖ of a direction that is nowhere stored."""
        squares = 0.0
        for name, value in self.weights.items():
            for start, (weights,) in chunks(value.detach()):
                squares += torch.linalg.vector_norm(direction.piece(name, start, weights)).item() ** 2
        return math.sqrt(self._sum(squares))

    def given(self, vector: Mapping[str, Tensor]) -> tuple[Vector, float]:
        """This process's part of a user's vector, and the norm of the whole.

        Raises:
            ValueError: it has other names or shapes than the trainable parameters, or is not finite.
        """
        parameters = self.objective.parameters
        if vector.keys() != parameters.keys():
            odd = sorted(vector.keys() ^ parameters.keys())
            raise ValueError(
                f"vector must have the names of the trainable parameters; these are in one only: {odd[:5]}. "
                "Take the names from model.named_parameters()."
            )
        squares, parts = 0.0, {}
        for name, value in vector.items():
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"vector[{name!r}] must be a tensor; got {type(value).__name__}. Convert it with torch.as_tensor()."
                )
            if value.shape != parameters[name].shape:
                raise ValueError(
                    f"vector[{name!r}] must have shape {tuple(parameters[name].shape)}, like the parameter; "
                    f"got {tuple(value.shape)}."
                )
            parts[name] = value if self.is_whole else part_like(value, parameters[name], self._offsets[name])
            square = self._sum(torch.linalg.vector_norm(parts[name], dtype=wide(value)).item() ** 2)
            if not math.isfinite(square):
                raise ValueError(f"vector[{name!r}] contains NaN, infinity or huge numbers: expected finite numbers.")
            squares += square
        return parts, math.sqrt(squares)

    def returned(self, vector: Mapping[str, Tensor]) -> Vector:
        """A vector for the user: sharded as the parameters are."""
        if self.is_whole:
            return dict(vector)
        return {name: shard_like(value, self.objective.parameters[name]) for name, value in vector.items()}

    # ------------------------------------------------------------------------------------------------- the weights

    @property
    def scale(self) -> float:
        """‖w‖, from at most about 8,192 evenly spread elements a tensor, which is as much as a scale needs."""
        squares = 0.0
        for weights in self.weights.values():
            few = weights.reshape(-1)[:: max(1, weights.numel() >> 12)] if weights.is_contiguous() else weights
            squares += torch.linalg.vector_norm(few.detach()).item() ** 2 / max(few.numel(), 1) * weights.numel()
        # weights that are all (nearly) zero give no scale: take that of an ordinary initialization
        return max(math.sqrt(self._sum(squares)), 0.02 * math.sqrt(self.num_parameters))

    # ------------------------------------------------------------------------------------------------- gradients

    def add_gradient(self, batch: object, index: int, factor: float = 1.0, *, sparse: bool = True) -> BatchLoss:
        """Add the gradient of factor · the batch's summed loss, at the present weights, to what is accumulated.

        Args:
            batch, index: the batch and its number.
            factor: of the loss.
            sparse: whether the gradients of embeddings may be sparse.

        Returns:
            The loss, detached: its graph is not kept beside the next.
        """
        with self.objective.rows.sparse_gradients() if sparse else nullcontext():
            result = self.objective.loss(batch, index)
        if result.total.requires_grad:
            (result.total * factor).backward()
        return BatchLoss(result.total.detach(), result.units)

    def slope(self, direction: Direction, index: int) -> float:
        """Inner product of the accumulated gradient, after batch ``index``, with a direction."""
        found, rows = 0.0, self.objective.rows.of(index)
        for name, parameter in self.objective.parameters.items():
            if parameter.grad is not None and name in rows:
                gradient = pick_rows(parameter.grad, rows[name])
                along = direction.rows(name, rows[name], gradient).to(gradient.dtype)
                found += torch.dot(gradient.view(-1), along.reshape(-1)).item()
            elif parameter.grad is not None:
                gradient = parameter.grad if self.is_whole else local(parameter.grad)
                for start, (piece,) in chunks(dense(gradient).detach()):
                    along = direction.piece(name, start, piece).to(piece.dtype).reshape(-1)
                    found += torch.dot(piece.reshape(-1), along).item()
        return self._sum(found)

    def take_gradient(self) -> Vector:
        """Move the accumulated gradient out of the parameters; what no loss reached is absent."""
        found = {}
        for name, parameter in self.objective.parameters.items():
            if parameter.grad is not None:
                gradient = (parameter.grad if self.is_whole else local(parameter.grad)).detach()
                found[name] = gradient.coalesce() if gradient.is_sparse else gradient
                parameter.grad = None
        return found


def zeros_like(parameter: Tensor) -> Tensor:
    """An accumulator for a parameter, or for its part here: its shape and device, at least float32, contiguous."""
    here = local(parameter)
    return torch.zeros_like(here, dtype=wide(here), requires_grad=False, memory_format=torch.contiguous_format)
