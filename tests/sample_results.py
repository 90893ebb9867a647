"""Results made by hand: a score with three modules, and a spectrum."""

from __future__ import annotations

import dataclasses
from typing import Any

from hf_pacgen.config import ScoreConfig
from hf_pacgen.results.pacgen import PACGenResult
from hf_pacgen.results.spectrum import Spectrum


def module(score: float, kl_complexity: float, num_parameters: int) -> dict[str, float]:
    """A module's share of a result."""
    return {
        "score": score,
        "kl_complexity": kl_complexity,
        "kl_weights": kl_complexity / 2,
        "kl_hessian": kl_complexity / 10,
        "kl_lipschitz": kl_complexity * 2 / 5,
        "kl_curvature": kl_complexity / 20,
        "hessian_trace": 1.5,
        "num_parameters": num_parameters,
    }


def sample_result(**changes: Any) -> PACGenResult:
    """The result; ``changes`` are fields with other values."""
    result = PACGenResult(
        score=60.0,
        score_per_parameter=0.6,
        kl_complexity=240.0,
        kl_complexity_per_parameter=2.4,
        score_stderr=1.5,
        kl_complexity_stderr=12.0,
        kl_parts={"weights": 120.0, "hessian": 24.0, "lipschitz": 96.0},
        kl_excess=120.0,
        kl_excess_stderr=12.0,
        kl_curvature=12.0,
        kl_curvature_stderr=1.0,
        eta=1000.0,
        active_fraction=0.25,
        kl_active_fraction=0.75,
        num_parameters=100,
        num_examples=1000,
        num_units=1000.0,
        loss=0.125,
        hessian_trace=4.5,
        hessian_trace_stderr=0.5,
        hessian_lipschitz=3.25,
        hessian_lipschitz_stderr=0.5,
        hessian_lipschitz_max=5.0,
        by_module={"head": module(10, 30, 10), "layer.0": module(30, 120, 50), "layer.1": module(20, 90, 40)},
        estimator="blend",
        hvp_method="finite_difference",
        num_hvps=12,
        num_gradients=4,
        seconds=1.0,
        status=("ρ did not converge in 5 iterations.",),
        config=ScoreConfig().to_dict(),
    )
    return dataclasses.replace(result, **changes)


def sample_spectrum(**changes: Any) -> Spectrum:
    """Two eigenvalues, of which one has converged; ``changes`` are fields with other values."""
    spectrum = Spectrum(
        eigenvalues=(8.0, 4.0),
        residuals=(1e-6, 0.3),
        converged=(True, False),
        trace=12.5,
        trace_stderr=0.25,
        nodes=(8.0, 4.0, 0.0, 0.5),
        weights=(0.01, 0.01, 0.9, 0.08),
        eigenvectors=None,
        num_parameters=100,
        num_examples=10,
        num_units=10.0,
        iterations=7,
        probes=1,
        num_hvps=19,
        hvp_method="reverse_over_reverse",
        status=(),
        config={},
    )
    return dataclasses.replace(spectrum, **changes)
