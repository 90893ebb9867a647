"""The spectrum of the Hessian of a model on its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from hf_pacgen.config import ScoreConfig, SpectrumConfig
from hf_pacgen.curvature.spectrum import estimate_spectrum
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.objective import LossFunction
from hf_pacgen.measures.session import check_arguments, measuring, progress_bar, ticker
from hf_pacgen.results.spectrum import Spectrum

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["hessian_spectrum"]


def hessian_spectrum(
    model: nn.Module,
    data: Any,
    *,
    k: int = 5,
    config: SpectrumConfig = SpectrumConfig(),
    loss_fn: LossFunction | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Spectrum:
    """Top eigenvalues, trace and spectral density of ∇²L̂(w), L̂ the mean loss over all loss units of the data.

    The eigenvalues come from Lanczos with full reorthogonalization, trace and density from stochastic Lanczos
    quadrature.  The basis takes one vector of the model's size (at least float32) for every Lanczos step; beside it
    there are about four such vectors, and for the probes one for each of their steps.

    Args:
        model, data, loss_fn, collate_fn, batch_size, accelerator, progress: as for :func:`hf_pacgen.pacgen`.
        k: how many eigenvalues; as many as there are parameters if that is less.
        config: which eigenvalues, how exactly, and the probes.

    Returns:
        A :class:`~hf_pacgen.results.spectrum.Spectrum`.  Eigenvalues that have not converged are marked.

    Raises:
        ValueError: k is not a positive integer, and what :func:`hf_pacgen.pacgen` raises.

    Source: Lanczos 1950; Ghorbani, Krishnan, Xiao 2019, arXiv 1901.10159.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k, the number of eigenvalues, must be an integer of at least 1; got {k!r}.")
    check_arguments(model, config, SpectrumConfig)
    scope = ScoreConfig(max_examples=config.max_examples, seed=config.seed)
    with measuring(model, data, scope, loss_fn, collate_fn, batch_size, accelerator) as objective:
        with WeightSpace(objective) as space, progress_bar(objective, progress, "Hessian spectrum") as bar:
            return estimate_spectrum(space, config, k=k, tick=ticker(objective, bar))
