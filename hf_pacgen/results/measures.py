"""What all measures say of one solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

__all__ = ["MEASURES", "Measures"]

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
