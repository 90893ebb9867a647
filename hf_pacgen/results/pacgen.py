"""What :func:`hf_pacgen.pacgen` found, as a record that is printed, saved and read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_pacgen.results.base import Record

__all__ = ["PACGenResult"]


@dataclass(frozen=True, kw_only=True)
class PACGenResult(Record):
    """PACGen of a model, with what is needed to judge it.  Lower is better.

    Scores add over parameters, so compare them between models of one architecture, or use the values
    per parameter.

    Attributes:
        score: Ψ, the published score, in nats.  score_per_parameter: Ψ/m.
        kl_complexity: K(η), the KL at the optimal noise, in nats.  kl_complexity_per_parameter: K(η)/m.
        eta: η of K(η).
        active_fraction: share of coordinates in which Ψ feels the curvature.  kl_active_fraction: the same of K(η).
        num_parameters: m, trainable weights; tied ones count once.
        num_examples, num_units: examples scored, and loss units in them (labeled tokens, or examples).
        loss: mean loss over all units, in nats for a cross-entropy.
        hessian_trace, hessian_trace_stderr: Σ H_ii and its standard error (None: a single batch shows no spread).  The
            error is that of the noise alone: the bias of 'gauss_newton', of which 'blend' keeps a part, is not in it.
        hessian_lipschitz: ρ, a lower estimate by construction.
        by_module: for every module that owns parameters, its share of ``score``, ``kl_complexity``,
            ``hessian_trace`` and ``num_parameters``, and its own active fractions.
        estimator, hvp_method: what was used.  num_hvps: Hessian-vector products of a batch.
        num_gradients: gradients of a batch on sampled labels.
        seconds: wall-clock time.
        status: plain sentences on what limits the numbers; empty if nothing does.
        config: the settings.
    """

    kind, version, remake = "result", 1, "Score the model again"

    score: float
    score_per_parameter: float
    kl_complexity: float
    kl_complexity_per_parameter: float
    eta: float
    active_fraction: float
    kl_active_fraction: float
    num_parameters: int
    num_examples: int
    num_units: float
    loss: float
    hessian_trace: float
    hessian_trace_stderr: float | None
    hessian_lipschitz: float
    by_module: dict[str, dict[str, float]]
    estimator: str
    hvp_method: str | None
    num_hvps: int
    num_gradients: int
    seconds: float
    status: tuple[str, ...]
    config: dict[str, Any]

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """The numbers under the keys by which they are logged, reported and compared, such as ``eval_pacgen_kl``."""
        return {
            f"{prefix}pacgen": self.score,
            f"{prefix}pacgen_per_parameter": self.score_per_parameter,
            f"{prefix}pacgen_kl": self.kl_complexity,
            f"{prefix}pacgen_kl_per_parameter": self.kl_complexity_per_parameter,
            f"{prefix}pacgen_active_fraction": self.active_fraction,
            f"{prefix}pacgen_kl_active_fraction": self.kl_active_fraction,
            f"{prefix}hessian_trace": self.hessian_trace,
            f"{prefix}hessian_lipschitz": self.hessian_lipschitz,
        }
