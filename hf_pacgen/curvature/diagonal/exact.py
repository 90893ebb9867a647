"""The exact diagonal, row by row: the entries of the gradient are differentiated one after another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hf_pacgen.config import Estimator
from hf_pacgen.curvature.diagonal.sums import DiagonalSums
from hf_pacgen.curvature.weight_space import Vector, WeightSpace
from hf_pacgen.data.losses import BatchLoss
from hf_pacgen.model.state import evaluation_mode, twice_differentiable

__all__ = ["Exact"]


class Exact:
    """Sums of diag H_b.

    Raises:
        ValueError: the model has more than as many parameters as its facts allow, or no second derivatives.
    """

    kind = "exact"

    def __init__(self, space: WeightSpace) -> None:
        if not space.has_second_derivatives:
            raise ValueError(
                "estimator='exact' needs second derivatives, which a model sharded by fully_shard has not. Use 'blend' "
                "or 'hutchinson', or score the whole model in one process."
            )
        limit = Estimator.EXACT.facts.most_parameters
        if limit is not None and space.num_parameters > limit:
            raise ValueError(
                f"estimator='exact' takes one backward pass for every parameter and batch: expected at most "
                f"{limit} trainable parameters, got {space.num_parameters}. Use 'blend' or 'hutchinson', or "
                "freeze weights."
            )
        self.space, self.sums, self.num_hvps = space, DiagonalSums(space), 0
        evaluation_mode(space.objective.model, checkpointing=False)

    def tensors(self) -> Vector:
        """All sums by name."""
        return self.sums.tensors()

    def add(self, batch: Any, index: int) -> tuple[bool, BatchLoss]:
        """Add a batch; returns whether its numbers were finite, and its loss."""
        objective, found = self.space.objective, self.space.zeros()
        parameters = list(objective.parameters.values())
        with twice_differentiable(objective.model), _second_derivatives():
            result = objective.loss(batch, index)
            gradients = torch.autograd.grad(result.total, parameters, create_graph=True, allow_unused=True)
            for total, parameter, gradient in zip(found.values(), parameters, gradients, strict=True):
                if gradient is None or not gradient.requires_grad:
                    continue
                flat, out = gradient.reshape(-1), total.view(-1)
                for i in range(flat.numel()):
                    (row,) = torch.autograd.grad(flat[i], parameter, retain_graph=True, allow_unused=True)
                    self.num_hvps += 1
                    if row is not None:
                        out[i] += row.reshape(-1)[i]
        finite = self.sums.add_diagonal(index, found, result.units)
        return finite, BatchLoss(result.total.detach(), result.units)


@contextmanager
def _second_derivatives() -> Iterator[None]:
    """Says in words that an operation has no second derivative, which torch says of its backward function."""
    try:
        yield
    except RuntimeError as error:  # NotImplementedError is one
        if "not implemented" not in str(error):
            raise
        raise ValueError(
            f"estimator='exact' differentiates the gradient, and an operation of the model or its loss has no second "
            f"derivative ({str(error).splitlines()[0]}): CTC and fused kernels have none. Use estimator='hutchinson' "
            "with hvp='finite_difference', or 'auto' in float32."
        ) from error
