"""An estimate of ρ."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LipschitzEstimate"]


@dataclass(frozen=True, kw_only=True)
class LipschitzEstimate:
    """A lower estimate of ρ = sup ‖H(w+u) - H(w)‖/‖u‖ over u in the box |u_i| ≤ N_i.

    Attributes:
        value: the largest ratio found.
        ratios: ‖H(w+u) - H(w)‖/‖u‖ of every displacement u tried.
        iterations: Lanczos steps done for every one of them.
        batches: number of batches whose mean loss was taken.
        converged: whether the last step changed the norm of the largest by less than 5 %.
        num_hvps: Hessian-vector products of a batch.
    """

    value: float
    ratios: tuple[float, ...]
    iterations: tuple[int, ...]
    batches: int
    converged: bool
    num_hvps: int
