"""The parts of a score by themselves: the Hessian's diagonal, its products with vectors, and ρ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_pacgen.config import Estimator, HVPMethod, ScoreConfig
from hf_pacgen.curvature.diagonal import estimate_diagonal
from hf_pacgen.curvature.diagonal_sums import zeros_like
from hf_pacgen.curvature.hvp import HessianProduct
from hf_pacgen.curvature.lipschitz import estimate_lipschitz
from hf_pacgen.data.objective import LossFunction, Objective
from hf_pacgen.distributed.shards import part_like, shard_like
from hf_pacgen.measures.session import check_arguments, measuring, progress_bar, ticker
from hf_pacgen.model.displacement import TensorDirection
from hf_pacgen.model.parameters import dense
from hf_pacgen.results.diagonal import DiagonalEstimate
from hf_pacgen.results.lipschitz import LipschitzEstimate

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["hessian_diagonal", "hessian_lipschitz", "hessian_vector_product"]


def hessian_diagonal(
    model: nn.Module,
    data: Any,
    *,
    config: ScoreConfig = ScoreConfig(),
    loss_fn: LossFunction | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> DiagonalEstimate:
    """The diagonal of ∇²L̂(w), L̂ the mean loss over all loss units of the data.

    Arguments and errors are those of :func:`pacgen`; ``config`` says by which estimator, how often over the
    data, and whether every entry gets a standard error.
    """
    with measuring(model, data, config, loss_fn, collate_fn, batch_size, accelerator, shards=True) as objective:
        with ExitStack() as stack:
            bar = stack.enter_context(progress_bar(objective, progress, "Hessian diagonal", passes=config.passes))
            displaces = config.estimator in (Estimator.HUTCHINSON, Estimator.BLEND) or objective.kind.is_other
            saved = stack.enter_context(objective.displaceable()) if displaces else None
            estimate = estimate_diagonal(objective, config, saved=saved, tick=ticker(objective, bar))
        return dataclasses.replace(
            estimate,
            values=_like_parameters(objective, estimate.values),
            stderr=None if estimate.stderr is None else _like_parameters(objective, estimate.stderr),
        )


def hessian_lipschitz(
    model: nn.Module,
    data: Any,
    *,
    config: ScoreConfig = ScoreConfig(),
    loss_fn: LossFunction | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> LipschitzEstimate:
    """A lower estimate of ρ, the Lipschitz constant of the Hessian in the box |u_i| ≤ N_i around the weights.

    Arguments and errors are those of :func:`pacgen`, and ``config.lipschitz_directions`` must be at least 1.
    """
    check_arguments(model, config, ScoreConfig)
    if config.lipschitz_directions < 1:
        raise ValueError("hessian_lipschitz needs lipschitz_directions of at least 1; got 0, which means 'not at all'.")
    with measuring(model, data, config, loss_fn, collate_fn, batch_size, accelerator, shards=True) as objective:
        with progress_bar(objective, progress, "ρ") as bar, objective.displaceable() as saved:
            return estimate_lipschitz(objective, config, saved=saved, tick=ticker(objective, bar))


def hessian_vector_product(
    model: nn.Module,
    data: Any,
    vector: Mapping[str, Tensor],
    *,
    method: HVPMethod | str = HVPMethod.AUTO,
    displacement: float | None = None,
    loss_fn: LossFunction | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
) -> dict[str, Tensor]:
    """∇²L̂(w) v, with L̂ the mean loss over all loss units of the data.

    Args:
        model, data, loss_fn, collate_fn, batch_size, accelerator: as for :func:`pacgen`.
        vector: v by parameter name, shaped like the trainable parameters.
        method: ``auto``, ``finite_difference``, ``reverse_over_reverse`` or ``forward_over_reverse``.
        displacement: norm of the displacement of a finite difference; by default it suits ‖w‖ and the dtype.

    Returns:
        The product by parameter name, at least float32; 0 where the loss does not depend on a parameter.

    Raises:
        ValueError: names or shapes that differ from the trainable parameters', a vector that is not finite, and
            what :func:`pacgen` raises.
    """
    config = ScoreConfig(hvp=method, displacement=displacement)
    with measuring(
        model, data, config, loss_fn, collate_fn, batch_size, accelerator, confirm=False, shards=True
    ) as objective:
        vector, norm = _checked_vector(objective, vector)
        out: dict[str, Tensor] = {}
        units = torch.zeros(1, dtype=torch.float64)
        if norm == 0:
            return _like_parameters(objective, {name: zeros_like(p) for name, p in objective.parameters.items()})
        direction = TensorDirection(vector)
        with objective.displaceable() as saved, objective.batches.processes.together():
            product = HessianProduct(objective, config.hvp, saved=saved, displacement=displacement, sparse=True)
            # a step is learned on the first batch, on every process the same, and then only shortened
            first = objective.batches.head(1) if objective.batches.processes.rank else []
            for index, batch in (*first, *_own(objective)):
                values, batch_units = product(batch, index, direction, norm=norm)
                product.reset(keep=index == 0)
                if not (first and index == 0):
                    units += batch_units
                    for name, value in values.items():
                        if name in out:
                            out[name].add_(value)
                        else:  # the first product's buffers are ours to keep
                            out[name] = value.to(torch.promote_types(value.dtype, torch.float32))
                del values  # not beside the next product
        total = objective.batches.processes.sum_(units).item()
        means = {}
        for name, parameter in objective.parameters.items():
            mean = dense(out.pop(name).div_(total)) if name in out else zeros_like(parameter)
            means[name] = objective.batches.processes.sum_(mean)
        return _like_parameters(objective, means)


def _own(objective: Objective) -> Iterator[tuple[int, Any]]:
    """This process's batches that have loss units."""
    return ((index, batch) for index, batch in objective.batches if objective.has_units(batch))


def _like_parameters(objective: Objective, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values sharded like the parameters, where those are."""
    return {name: shard_like(value, objective.parameters[name]) for name, value in values.items()}


def _checked_vector(objective: Objective, vector: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """This process's part of a vector that is shaped like the parameters, and finite; and the norm of the whole."""
    offsets, parameters = objective.shards.offsets, objective.parameters
    if vector.keys() != parameters.keys():
        odd = sorted(vector.keys() ^ parameters.keys())
        raise ValueError(
            f"vector must have the names of the trainable parameters; these are in one only: {odd[:5]}. "
            "Take the names from model.named_parameters()."
        )
    squares, parts = 0.0, {}
    for name, value in vector.items():
        if value.shape != parameters[name].shape:
            raise ValueError(
                f"vector[{name!r}] must have shape {tuple(parameters[name].shape)}, like the parameter; "
                f"got {tuple(value.shape)}."
            )
        parts[name] = part_like(value, parameters[name], offsets.get(name, 0))
        wide = torch.promote_types(value.dtype, torch.float32)
        square = objective.shards.sum(torch.linalg.vector_norm(parts[name], dtype=wide).item() ** 2)
        if not math.isfinite(square):
            raise ValueError(f"vector[{name!r}] contains NaN, infinity or huge numbers: expected finite numbers.")
        squares += square
    return parts, math.sqrt(squares)
