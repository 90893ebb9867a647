"""An estimate of ρ."""

from __future__ import annotations

from dataclasses import dataclass

from hf_pacgen.results.base import Result
from hf_pacgen.results.fields import measured, other


@dataclass(frozen=True, kw_only=True)
class LipschitzEstimate(Result):
    """A lower estimate of ρ = sup ‖H(w+u) - H(w)‖/‖u‖ over u in the box |u_i| ≤ N_i."""

    kind, remake = "estimate of ρ", "Estimate it again"

    value: float = measured("ρ", says="the largest ratio found")
    ratios: tuple[float, ...] = other("‖H(w+u) - H(w)‖/‖u‖ of every displacement u tried", default=())
    iterations: tuple[int, ...] = other("Lanczos steps done for every one of them", default=())
    batches: int = other("number of batches whose mean loss was taken")
    converged: bool = other("whether the last step changed the norm of the largest by less than 5 %")
    num_hvps: int = other("Hessian-vector products of a batch", default=0)
