"""An estimate of the Hessian's diagonal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_pacgen.results.base import Result
from hf_pacgen.results.fields import measured, other

if TYPE_CHECKING:
    from torch import Tensor

    from hf_pacgen.config import Estimator, HVPMethod


@dataclass(frozen=True, kw_only=True)
class DiagonalEstimate(Result):
    """An estimate of diag ∇²L̂(w), L̂ the mean loss over all units of the data."""

    kind, remake = "Hessian diagonal", "Estimate it again"

    values: dict[str, Tensor] = other(
        "H_ii by parameter name, shaped like the parameters, at least float32", written=False
    )
    stderr: dict[str, Tensor] | None = other(
        "standard error of every entry, from the spread between batches and passes, where asked for "
        "(standard_error=True): of the Hutchinson part times its share for the blend, 0 for the exact one, NaN where "
        "a single batch shows no spread",
        default=None,
        written=False,
    )
    trace: float = measured("Hessian trace", says="Σ H_ii")
    trace_stderr: float | None = other("its standard error; None where a single batch shows no spread", default=None)
    loss: float = measured("training loss", says="L̂(w)")
    num_units: float = other("loss units in the data")
    num_examples: int = other("examples in the data")
    estimator: Estimator = other("what was used in the end")
    hvp_method: HVPMethod | None = other("None where no product was needed", default=None)
    num_hvps: int = other("Hessian-vector products of a batch", default=0)
    num_gradients: int = other("gradients of a batch on sampled labels", default=0)
    blend: dict[str, float] | None = other(
        "share of the Hutchinson estimate in each parameter tensor, for the blend", default=None
    )
    notes: tuple[str, ...] = other("what a user should know, in sentences", default=())
