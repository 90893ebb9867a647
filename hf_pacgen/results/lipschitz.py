"""An estimate of ρ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hf_pacgen.maths.student import interval_stderr
from hf_pacgen.results.base import Result
from hf_pacgen.results.fields import measured, other

MEDIAN = 1.2533  # standard error of a median over that of a mean, for normal numbers: sqrt(π/2)


@dataclass(frozen=True, kw_only=True)
class LipschitzEstimate(Result):
    """A typical ρ = ‖H(w+u) - H(w)‖/‖u‖ over u in the box |u_i| ≤ N_i, H of a batch.

    The theory's ρ is the supremum over the box, which no sample finds: ratios are heavy-tailed, so the largest of a few
    says more about how many were tried, and about chance, than about the model.  The median is what another seed gives
    again.  The largest is kept beside it.
    """

    kind, remake = "estimate of ρ", "Estimate it again"

    value: float = measured("ρ", says="the median of the ratios found")
    stderr: float | None = other(
        "its standard error, from the spread of the ratios over displacements and batches, such that ± 1.96 of it is "
        "a 95 % interval however few there are (Student's t); None for a single one",
        default=None,
    )
    largest: float = measured("largest ρ", says="the largest ratio found", default=0.0)
    ratios: tuple[float, ...] = other("‖H(w+u) - H(w)‖/‖u‖ of every displacement u tried", default=())
    iterations: tuple[int, ...] = other("Lanczos steps done for every one of them", default=())
    batches: int = other("number of batches whose mean loss was taken, for every one of them")
    converged: bool = other("whether the last step changed the norm by less than 5 %, for at least half of them")
    num_hvps: int = other("Hessian-vector products of a batch", default=0)


def median_stderr(ratios: Sequence[float]) -> float | None:
    """Standard error of the median of some ratios ≥ 0, such that ± 1.96 of it is a 95 % interval; None for one.

    Ratios of different batches scatter by factors, so the spread is that of their logarithms, unless one is 0.
    """
    if len(ratios) < 2:
        return None
    factor = interval_stderr(MEDIAN / math.sqrt(len(ratios)), len(ratios) - 1)
    if min(ratios) > 0:
        return statistics.median(ratios) * statistics.stdev(map(math.log, ratios)) * factor
    return statistics.stdev(ratios) * factor
