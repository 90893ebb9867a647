"""Gradients and Hessians of the mean loss as operators: the one loop over batches, and the one sum over processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.curvature.displacement import Direction, TensorDirection, Terms
from hf_pacgen.curvature.hvp import HessianProduct
from hf_pacgen.curvature.weight_space import Vector, WeightSpace, zeros_like
from hf_pacgen.data.contents import count_examples
from hf_pacgen.data.losses import require_units
from hf_pacgen.data.objective import Objective
from hf_pacgen.model.embeddings import dense
from hf_pacgen.model.precision import wide

__all__ = ["HessianDifference", "MeanGradient", "MeanHessian", "MeanLoss", "Tick"]

Tick = Callable[[], Any]
"""Called after every batch."""


class MeanLoss:
    """L̂ at the present weights: summed over the batches of all processes, and divided by their loss units.

    Attributes:
        units, examples: of the data, known after the first sum.
        batches: batches gone over by this process.
    """

    def __init__(self, objective: Objective, tick: Tick = lambda: None) -> None:
        self.objective, self.tick = objective, tick
        self.units, self.examples, self.batches = 0.0, 0, 0

    def __call__(self) -> float:
        """L̂, without a graph."""
        with torch.no_grad():
            return self.over_batches(self._loss)

    def over_batches(self, work: Callable[[Any, int], tuple[float, float]], *, skipped: Container[int] = ()) -> float:
        """Call ``work(batch, index) -> (value, units)`` on every batch that has loss units, on all processes together.

        Returns:
            The sum of all values over the sum of all units; NaN where batches were skipped and the others have none.

        Raises:
            ValueError: the data has no loss unit.
        """
        processes = self.objective.batches.processes
        sums = torch.zeros(3, dtype=torch.float64)
        with processes.together():
            for index, batch in self.objective.batches.without(skipped):
                if self.objective.has_units(batch):
                    sums += torch.tensor([*work(batch, index), count_examples(batch)], dtype=torch.float64)
                    self.batches += 1
                self.tick()
        value, self.units, examples = processes.sum_(sums).tolist()
        self.examples = int(examples)
        if skipped != () and not self.units:
            return math.nan
        require_units(self.units)
        return value / self.units

    def batches_of_all(self) -> int:
        """Batches gone over, by all processes."""
        return int(self.objective.batches.processes.sum_(torch.tensor([self.batches], dtype=torch.float64)))

    def _loss(self, batch: Any, index: int) -> tuple[float, float]:
        result = self.objective.loss(batch, index)
        return result.total.item(), result.units

    def _pooled(self, sums: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Vector:
        """Sums of this process as the mean over all processes' units; 0 where a parameter is absent."""
        means = {}
        for name, like in weights.items():
            mean = dense(sums[name]).to(wide(like)).div_(self.units) if name in sums else zeros_like(like)
            means[name] = self.objective.batches.processes.sum_(mean.contiguous())
        return means


class MeanGradient(MeanLoss):
    """L̂ and ∇L̂, at the weights or displaced from them."""

    def __init__(self, space: WeightSpace, tick: Tick = lambda: None) -> None:
        super().__init__(space.objective, tick)
        self.space = space

    def at(self, terms: Terms) -> tuple[float, Vector]:
        """L̂(w + u) and ∇L̂(w + u), u = Σ scale · direction; the weights stay there."""
        self.space.displace(terms)
        loss = self.over_batches(self._add)
        return loss, self._pooled(self.space.take_gradient(), self.space.weights)

    def _add(self, batch: Any, index: int) -> tuple[float, float]:
        result = self.space.add_gradient(batch, index, sparse=False)
        return result.total.item(), result.units


class MeanHessian(MeanLoss):
    """v -> ∇²L̂(w) v.

    Args:
        product: products with the Hessian of a batch.
        tick: called after every batch.
        same_steps: make the finite differences of every batch with the step that the first one teaches, whichever
            process it is on: the result then does not depend on how many processes there are.
    """

    def __init__(self, product: HessianProduct, tick: Tick = lambda: None, *, same_steps: bool = False) -> None:
        super().__init__(product.space.objective, tick)
        self.product, self.same_steps = product, same_steps

    def __matmul__(self, vector: Vector) -> Vector:
        """∇²L̂(w) v of a unit vector, in buffers of its own."""
        return self.times(vector, norm=1.0)

    def times(self, vector: Vector, *, norm: float) -> Vector:
        """∇²L̂(w) v, with ‖v‖ known."""
        direction, sums = TensorDirection(vector), Vector()

        def add(batch: Any, index: int) -> tuple[float, float]:
            values, units = self.product(batch, index, direction, norm=norm)
            if self.same_steps:
                self.product.reset(keep=index == 0)
            for name, value in values.items():
                if name in sums:
                    sums[name].add_(value)
                else:  # the first product's buffers are ours to keep
                    sums[name] = value.to(wide(value))
            return 0.0, units

        batches = self.objective.batches
        if self.same_steps:
            with batches.processes.together():  # the first process learns the step in the loop itself
                for index, batch in batches.head(1) if batches.processes.rank else []:
                    self.product(batch, index, direction, norm=norm)
                    self.product.reset(keep=True)
        self.over_batches(add)
        return self._pooled(sums, self.product.space.weights)


class HessianDifference:
    """v -> (H(w+u) - H(w)) v of the mean loss over some batches, all on this process.

    Args:
        product: products with the Hessian of a batch.
        batches: with their numbers.
        shift: u.
        tick: called after every batch.

    Raises:
        ValueError: the batches have no loss unit.
    """

    def __init__(
        self, product: HessianProduct, batches: Sequence[tuple[int, Any]], shift: Direction, tick: Tick = lambda: None
    ) -> None:
        self.product, self.space, self.batches, self.tick = product, product.space, batches, tick
        self.places: tuple[tuple[float, Terms], ...] = ((1.0, [(shift, 1.0)]), (-1.0, []))
        self.units = sum(self.space.objective.count_units(batch, index) for index, batch in batches)
        self.num_hvps = 0
        if self.units == 0:
            raise ValueError(
                f"The batches of ρ (lipschitz_batches={len(batches)}) have no loss unit: expected at least "
                "one labeled token or example. Check the number of units that loss_fn returns, or raise "
                "lipschitz_batches."
            )

    def gradients(self) -> Vector:
        """∇L(w+u) - ∇L(w), which is ∫ H(w+tu) u dt and leans on the largest eigenvalues."""
        for index, batch in self.batches:
            for sign, terms in self.places:
                self.space.displace(terms)
                self.space.add_gradient(batch, index, sign)
        found = self.space.take_gradient()
        return {
            name: dense(found[name]).to(wide(weights)) if name in found else zeros_like(weights)
            for name, weights in self.space.weights.items()
        }

    def __matmul__(self, vector: Vector) -> Vector:
        """The product with a unit vector."""
        return self.add(vector, self.space.zeros())

    def add(self, vector: Vector, out: Vector) -> Vector:
        """Add the product with a unit vector to ``out``."""
        direction = TensorDirection(vector)
        for index, batch in self.batches:
            for sign, terms in self.places:
                values, _ = self.product(batch, index, direction, norm=1.0, at=terms)
                for name, value in values.items():
                    out[name].add_(value, alpha=sign / self.units)
                self.num_hvps += 1
                del values  # not beside the next product
            self.tick()
        return out
