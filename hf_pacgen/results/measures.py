"""What all measures say about one solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_pacgen.results.base import Result
from hf_pacgen.results.fields import like, measured, origin, other
from hf_pacgen.results.pacgen import PACGenResult
from hf_pacgen.results.relative_sharpness import RelativeSharpness
from hf_pacgen.results.sharpness import Sharpness


@dataclass(frozen=True, kw_only=True)
class Measures(Result):
    """What all measures say about one solution."""

    kind, unversioned = "comparison", True

    name: str = other("of the solution")
    # by the facts of the measures themselves, so that both are called by one name
    score: float = like(PACGenResult, "score")
    score_per_parameter: float = like(PACGenResult, "score_per_parameter")
    active_fraction: float = like(PACGenResult, "active_fraction")
    kl_complexity: float = like(PACGenResult, "kl_complexity")
    kl_complexity_per_parameter: float = like(PACGenResult, "kl_complexity_per_parameter")
    kl_active_fraction: float = like(PACGenResult, "kl_active_fraction")
    score_stderr: float | None = like(PACGenResult, "score_stderr")
    kl_complexity_stderr: float | None = like(PACGenResult, "kl_complexity_stderr")
    # None in files of release 0.1, which did not know them
    kl_excess: float | None = like(PACGenResult, "kl_excess")
    kl_excess_stderr: float | None = like(PACGenResult, "kl_excess_stderr")
    kl_curvature: float | None = like(PACGenResult, "kl_curvature")
    kl_curvature_stderr: float | None = like(PACGenResult, "kl_curvature_stderr")
    eta: float = like(PACGenResult, "eta")
    hessian_trace: float = like(PACGenResult, "hessian_trace")
    hessian_trace_stderr: float | None = like(PACGenResult, "hessian_trace_stderr")
    # None where it was not asked for
    largest_eigenvalue: float | None = measured(
        "λ_max of the Hessian", says="largest eigenvalue of the Hessian", default=None
    )
    largest_eigenvalue_converged: bool = other("whether more Lanczos steps would hardly change it", default=False)
    hessian_lipschitz: float = like(PACGenResult, "hessian_lipschitz")
    hessian_lipschitz_stderr: float | None = like(PACGenResult, "hessian_lipschitz_stderr")
    expected_sharpness: float | None = like(Sharpness, "mean", optional=True)
    expected_sharpness_stderr: float | None = like(Sharpness, "stderr")
    noise_scale: float | None = other("σ of the noise of the expected sharpness", default=None)
    relative_sharpness: float | None = like(RelativeSharpness, "relative_sharpness", optional=True)
    relative_sharpness_stderr: float | None = like(RelativeSharpness, "relative_sharpness_stderr")
    relative_sharpness_by_level: dict[str, float] = other("the same by level of the noise", default=dict)
    relative_sharpness_by_level_stderr: dict[str, float] = other("standard errors of these, where known", default=dict)
    weight_norm: float = measured("‖w‖", says="Euclidean norm of the trainable weights")
    loss: float = like(PACGenResult, "loss")
    test_loss: float | None = measured(
        "test loss", better="lower", says="mean loss on the test data; None without", default=None
    )
    gap: float | None = measured(
        "gap", better="lower", says="test minus training loss; None without test data", default=None
    )
    num_parameters: int = other("trainable parameters")
    num_examples: int = other("training examples measured")
    seconds: float = other("time taken", default=0.0)
    status: tuple[str, ...] = other("what limits the numbers, in sentences", default=())
    origin: dict[str, Any] = origin()


# labels of the measures, in the order of a table, but for those that are kept for old readers only
MEASURES = {name: facts.row for name, facts in Measures.facts().items() if facts.label and not facts.legacy}
