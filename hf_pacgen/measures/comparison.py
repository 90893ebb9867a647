"""All measures of one solution, to be held against those of others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_pacgen.config import ScoreConfig, SharpnessConfig, SpectrumConfig
from hf_pacgen.data.objective import LossFunction
from hf_pacgen.measures.landscape import mean_loss
from hf_pacgen.measures.pacgen import pacgen
from hf_pacgen.measures.sharpness import expected_sharpness
from hf_pacgen.measures.spectrum import hessian_spectrum
from hf_pacgen.model.parameters import trainable_parameters
from hf_pacgen.results.measures import Measures

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["measure_all"]


def measure_all(
    model: nn.Module,
    data: Any,
    *,
    name: str,
    test_data: Any = None,
    noise_scale: float = 0.01,
    score: ScoreConfig = ScoreConfig(),
    spectrum: SpectrumConfig = SpectrumConfig(probes=0),
    sharpness: SharpnessConfig = SharpnessConfig(),
    loss_fn: LossFunction | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Measures:
    """All measures of one solution on its training data; the gap as well where test data is given.

    Args:
        model, data, loss_fn, collate_fn, batch_size, accelerator, progress: as for :func:`hf_pacgen.pacgen`.
        name: of the solution.
        test_data: examples that the model has not seen.
        noise_scale: σ of the expected sharpness.
        score, spectrum, sharpness: settings of the measures.

    Raises:
        ValueError: what the measures raise.
    """
    began = time.perf_counter()
    where: dict[str, Any] = {
        "loss_fn": loss_fn,
        "collate_fn": collate_fn,
        "batch_size": batch_size,
        "accelerator": accelerator,
        "progress": progress,
    }
    result = pacgen(model, data, config=score, **where)
    top = hessian_spectrum(model, data, k=1, config=spectrum, **where)
    rise = expected_sharpness(model, data, noise_scale=noise_scale, config=sharpness, **where)
    test_loss = None if test_data is None else mean_loss(model, test_data, **where)
    squares = (torch.linalg.vector_norm(p.detach()).item() ** 2 for p in trainable_parameters(model).values())
    return Measures(
        name=name,
        score=result.score,
        score_per_parameter=result.score_per_parameter,
        active_fraction=result.active_fraction,
        kl_complexity=result.kl_complexity,
        kl_complexity_per_parameter=result.kl_complexity_per_parameter,
        kl_active_fraction=result.kl_active_fraction,
        eta=result.eta,
        hessian_trace=result.hessian_trace,
        hessian_trace_stderr=result.hessian_trace_stderr,
        largest_eigenvalue=top.eigenvalues[0],
        largest_eigenvalue_converged=top.converged[0],
        hessian_lipschitz=result.hessian_lipschitz,
        expected_sharpness=rise.mean,
        expected_sharpness_stderr=rise.stderr,
        noise_scale=noise_scale,
        weight_norm=math.sqrt(sum(squares)),
        loss=result.loss,
        test_loss=test_loss,
        gap=None if test_loss is None else test_loss - result.loss,
        num_parameters=result.num_parameters,
        num_examples=result.num_examples,
        seconds=time.perf_counter() - began,
        status=(*result.status, *top.status, *rise.status),
    )
