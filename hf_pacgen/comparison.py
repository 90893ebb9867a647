"""All measures of several checkpoints, side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_pacgen.config import ScoreConfig
from hf_pacgen.curvature.objective import LossFunction
from hf_pacgen.curvature.parameters import trainable_parameters
from hf_pacgen.landscape import hessian_spectrum, mean_loss
from hf_pacgen.measure import pacgen
from hf_pacgen.sharpness import expected_sharpness
from hf_pacgen.sharpness_config import SharpnessConfig, SpectrumConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["MEASURES", "Measures", "measure_all", "rank_correlation"]

MEASURES = {
    "score": "Ψ",
    "score_per_parameter": "Ψ/m",
    "active_fraction": "  active fraction of Ψ",
    "kl_complexity": "K(η)",
    "kl_complexity_per_parameter": "K(η)/m",
    "kl_active_fraction": "  active fraction of K(η)",
    "hessian_trace": "Hessian trace",
    "largest_eigenvalue": "λ_max",
    "hessian_lipschitz": "ρ",
    "expected_sharpness": "expected sharpness",
    "weight_norm": "‖w‖",
    "loss": "training loss",
    "test_loss": "test loss",
    "gap": "gap",
}
"""Names of the measures for people, in the order of a table."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What all measures say of one solution.

    Attributes:
        name: of the solution.
        score, score_per_parameter, active_fraction: Ψ, Ψ/m, and the share of the weights in which Ψ feels curvature.
        kl_complexity, kl_complexity_per_parameter, kl_active_fraction: the same of K(η), at ``eta``.
        hessian_trace, hessian_trace_stderr: Σ H_ii and its standard error.
        largest_eigenvalue, largest_eigenvalue_converged: λ_max of the Hessian.
        hessian_lipschitz: ρ.
        expected_sharpness, expected_sharpness_stderr: E_u L̂(w + u) - L̂(w) at ``noise_scale``.
        weight_norm: ‖w‖, Euclidean, of the trainable weights.
        loss, test_loss, gap: mean training and test loss, and test minus training loss; None without test data.
        num_parameters, num_examples: m, and the examples measured.
        seconds: time taken.
        status: what limits the numbers, in sentences.
    """

    name: str
    score: float
    score_per_parameter: float
    active_fraction: float
    kl_complexity: float
    kl_complexity_per_parameter: float
    kl_active_fraction: float
    eta: float
    hessian_trace: float
    hessian_trace_stderr: float | None
    largest_eigenvalue: float
    largest_eigenvalue_converged: bool
    hessian_lipschitz: float
    expected_sharpness: float
    expected_sharpness_stderr: float | None
    noise_scale: float
    weight_norm: float
    loss: float
    test_loss: float | None
    gap: float | None
    num_parameters: int
    num_examples: int
    seconds: float
    status: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"status": list(self.status)}


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


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, ties having their mean rank; NaN where one of the two is constant.

    Raises:
        ValueError: lengths that differ, or fewer than two values.

    >>> rank_correlation([1, 2, 3], [10, 20, 15])
    0.5
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(
            f"A rank correlation needs two sequences of one length of at least 2; got {len(first)} and {len(second)}."
        )
    a, b = (torch.tensor(_ranks(values), dtype=torch.float64) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum((other < value) + (other == value) / 2 for other in values) for value in values]
