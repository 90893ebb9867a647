"""The spectrum of the Hessian of a model on its data."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn
from typing_extensions import Unpack

from hf_pacgen.config import SpectrumConfig
from hf_pacgen.config.settings import number
from hf_pacgen.curvature.examination import examine
from hf_pacgen.curvature.spectrum import estimate_spectrum
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.measures.session import DataOptions, measure, session
from hf_pacgen.results.spectrum import Spectrum


@measure
def hessian_spectrum(
    model: nn.Module,
    data: Any,
    *,
    k: int = 5,
    config: SpectrumConfig = SpectrumConfig(),
    **options: Unpack[DataOptions],
) -> Spectrum:
    """Top eigenvalues, trace and spectral density of ∇²L̂(w), L̂ the mean loss over all loss units of the data.

    The eigenvalues come from Lanczos with full reorthogonalization, trace and density from stochastic Lanczos
    quadrature.  The basis takes one vector of the model's size (at least float32) for every Lanczos step; beside it
    there are about four such vectors, and for the probes one for each of their steps.

    Args:
        model, data, options: as for :func:`hf_pacgen.pacgen`.
        k: how many eigenvalues; as many as there are parameters if that is less.
        config: which eigenvalues, how exactly, and the probes.

    Returns:
        A :class:`~hf_pacgen.results.spectrum.Spectrum`.  Eigenvalues that have not converged are marked.

    Raises:
        ValueError: k is not a positive integer, and what :func:`hf_pacgen.pacgen` raises.

    Source: Lanczos 1950; Ghorbani, Krishnan, Xiao 2019, arXiv 1901.10159.
    """
    k = number(k, "k, the number of eigenvalues,", minimum=1, integer=True)
    with session(model, data, config, stage="Hessian spectrum", whole=True, derivatives=True, **options) as (
        objective,
        tick,
    ):
        with WeightSpace(objective) as space:
            examine(space, config.hvp)
            found = estimate_spectrum(space, config, k=k, tick=tick)
            return dataclasses.replace(found, status=(*found.status, *objective.notes))
