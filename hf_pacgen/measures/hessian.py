"""The parts of a score by themselves: the Hessian's diagonal, its products with vectors, and ρ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hf_pacgen.config import HVPMethod, ScoreConfig
from hf_pacgen.curvature.diagonal import estimate_diagonal
from hf_pacgen.curvature.hvp import HessianProduct
from hf_pacgen.curvature.lipschitz import estimate_lipschitz
from hf_pacgen.curvature.operators import MeanHessian
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.objective import LossFunction
from hf_pacgen.measures.session import check_arguments, measuring, progress_bar, ticker
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
            space = stack.enter_context(WeightSpace(objective))
            estimate = estimate_diagonal(space, config, tick=ticker(objective, bar))
        return dataclasses.replace(
            estimate,
            values=space.returned(estimate.values),
            stderr=None if estimate.stderr is None else space.returned(estimate.stderr),
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
        with progress_bar(objective, progress, "ρ") as bar, WeightSpace(objective) as space:
            return estimate_lipschitz(space, config, tick=ticker(objective, bar))


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
        with WeightSpace(objective) as space:
            given, norm = space.given(vector)
            if norm == 0:
                return space.returned(space.zeros())
            with objective.batches.processes.together():
                product = HessianProduct(space, config.hvp, displacement=displacement)
            return space.returned(MeanHessian(product, same_steps=True).times(given, norm=norm))
