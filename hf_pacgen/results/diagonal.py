"""An estimate of the Hessian's diagonal."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hf_pacgen.config import Estimator, HVPMethod

__all__ = ["DiagonalEstimate"]


@dataclass(frozen=True, kw_only=True)
class DiagonalEstimate:
    """An estimate of diag ∇²L̂(w), L̂ the mean loss over all units of the data.

    Attributes:
        values: H_ii by parameter name, shaped like the parameters, at least float32.
        stderr: standard error of every entry, from the spread between batches and passes, where asked for
            (``standard_error=True``): of the Hutchinson part times its share for the blend, 0 for the exact one,
            NaN where a single batch shows no spread.
        trace, trace_stderr: Σ H_ii and its standard error (None where a single batch shows no spread).
        loss: L̂(w).  num_units: loss units in the data.  num_examples: examples in it.
        estimator: what was used in the end.  hvp_method: None where no product was needed.
        num_hvps, num_gradients: Hessian-vector products, and gradients on sampled labels, of a batch.
        blend: share of the Hutchinson estimate in each parameter tensor, for the blend.
        notes: what a user should know, in sentences.
    """

    values: dict[str, Tensor]
    stderr: dict[str, Tensor] | None
    trace: float
    trace_stderr: float | None
    loss: float
    num_units: float
    num_examples: int
    estimator: Estimator
    hvp_method: HVPMethod | None
    num_hvps: int
    num_gradients: int
    blend: dict[str, float] | None
    notes: tuple[str, ...]
