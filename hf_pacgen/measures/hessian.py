"""The parts of a score by themselves: the Hessian's diagonal, its products with vectors, and ρ."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from hf_pacgen.config import HVPMethod, ScoreConfig
from hf_pacgen.config.settings import choice, number
from hf_pacgen.curvature.checks import sanity
from hf_pacgen.curvature.diagonal import estimate_diagonal
from hf_pacgen.curvature.examination import examine, examine_for
from hf_pacgen.curvature.hvp import HessianProduct
from hf_pacgen.curvature.lipschitz import estimate_lipschitz
from hf_pacgen.curvature.operators import MeanHessian
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.objective import Objective
from hf_pacgen.measures.session import DataOptions, measure, session
from hf_pacgen.results.diagonal import DiagonalEstimate
from hf_pacgen.results.lipschitz import LipschitzEstimate


@measure
def hessian_diagonal(
    model: nn.Module, data: Any, *, config: ScoreConfig = ScoreConfig(), **options: Unpack[DataOptions]
) -> DiagonalEstimate:
    """The diagonal of ∇²L̂(w), L̂ the mean loss over all loss units of the data.

    Arguments, options and errors are those of :func:`pacgen`; ``config`` says by which estimator, how often over the
    data, and whether every entry gets a standard error.
    """
    with session(model, data, config, derivatives=True, **options) as (objective, tick):
        tick.stage("Hessian diagonal", passes=config.passes or 1)
        with WeightSpace(objective) as space:
            examine_for(space, config, smoothness=False)
            estimate = estimate_diagonal(space, config, tick=tick)
        notes = (*estimate.notes, *objective.notes, *sanity(space, estimate, None))
        stderr = None if estimate.stderr is None else space.returned(estimate.stderr)
        return dataclasses.replace(estimate, values=space.returned(estimate.values), stderr=stderr, notes=notes)


@measure
def hessian_lipschitz(
    model: nn.Module, data: Any, *, config: ScoreConfig = ScoreConfig(), **options: Unpack[DataOptions]
) -> LipschitzEstimate:
    """A typical ρ, the Lipschitz constant of the Hessian in the box |u_i| ≤ N_i around the weights.

    Arguments, options and errors are those of :func:`pacgen`, and ``config.lipschitz_directions`` must be at least 1.
    """
    if config.lipschitz_directions < 1:
        raise ValueError("hessian_lipschitz needs lipschitz_directions of at least 1; got 0, which means 'not at all'.")
    with session(model, data, config, stage="ρ", derivatives=True, **options) as (objective, tick):
        with WeightSpace(objective) as space:
            examine(space, config.hvp)
            _tell(objective)
            return estimate_lipschitz(space, config, tick=tick)


@measure
def hessian_vector_product(
    model: nn.Module,
    data: Any,
    vector: Mapping[str, Tensor],
    *,
    method: HVPMethod | str = HVPMethod.AUTO,
    displacement: float | None = None,
    **options: Unpack[DataOptions],
) -> dict[str, Tensor]:
    """∇²L̂(w) v, with L̂ the mean loss over all loss units of the data.

    Args:
        model, data, options: as for :func:`pacgen`.
        vector: v by parameter name, shaped like the trainable parameters.
        method: ``auto``, ``finite_difference``, ``reverse_over_reverse`` or ``forward_over_reverse``.
        displacement: norm of the displacement of a finite difference; by default it suits ‖w‖ and the dtype.

    Returns:
        The product by parameter name, at least float32; 0 where the loss does not depend on a parameter.

    Raises:
        ValueError: names or shapes that differ from the trainable parameters', a vector that is not finite, and
            what :func:`pacgen` raises.
    """
    method = choice(HVPMethod, method, "hvp")
    if displacement is not None:
        displacement = number(displacement, "displacement", minimum=0, strict=True)
    with session(model, data, confirm=False, derivatives=True, **options) as (objective, _):
        with WeightSpace(objective) as space:
            given, norm = space.given(vector)
            if norm == 0:  # a finite difference has no direction to go
                return space.returned(space.zeros())
            examine(space, method)
            _tell(objective)
            with objective.batches.processes.together():  # a method may be refused
                product = HessianProduct(space, method, displacement=displacement)
            return space.returned(MeanHessian(product, same_steps=True).times(given, norm=norm))


def _tell(objective: Objective) -> None:
    # of results that have no place for sentences
    for sentence in objective.notes:
        warnings.warn(sentence, stacklevel=5)
