"""Worst-case sharpness: the largest rise of the loss in a box around the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from hf_pacgen.config import SharpnessConfig
from hf_pacgen.curvature.ascent import ascend
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.measures.session import DataOptions, measure, session
from hf_pacgen.noise.perturbed import check_scale
from hf_pacgen.results.worst_case import WorstCaseSharpness


@measure
def worst_case_sharpness(
    model: nn.Module,
    data: Any,
    *,
    box: float | Mapping[str, Tensor] = 1e-3,
    config: SharpnessConfig = SharpnessConfig(),
    **options: Unpack[DataOptions],
) -> WorstCaseSharpness:
    """max L̂(w + u) - L̂(w) over a box |u_i| ≤ b_i, by projected gradient ascent: a lower estimate of the maximum.

    Keskar et al.'s measure is its ``relative``, 100 (max L̂(w + u) - L̂(w))/(1 + L̂(w)).  The ascent is on the mean loss
    over all loss units of the data, in the coordinates u_i/b_i, with steps that are shortened until the loss rises
    enough (Armijo).  It takes five vectors of the model's size.  The weights come back bit for bit.

    Args:
        model, data, options: as for :func:`hf_pacgen.pacgen`.
        box: ε of Keskar et al.'s box, b_i = ε(|w_i| + 1), or the half-widths b_i by parameter name (others stay).
        config: number of starts and steps, seed.

    Raises:
        ValueError: a box that is negative or not finite, an unknown name, another shape, a loss that is not finite in
            the box, and what :func:`hf_pacgen.pacgen` raises.

    Source: Keskar, Mudigere, Nocedal, Smelyanskiy, Tang 2017, arXiv 1609.04836.
    """
    with session(model, data, config, stage="worst case", whole=True, **options) as (objective, tick):
        check_scale("box", box, objective.parameters)  # here, where the names of the parameters are known
        with WeightSpace(objective) as space:
            found = ascend(space, box, config, tick=tick)
            return dataclasses.replace(found, status=(*found.status, *objective.notes))
