"""Picture of a measure against the generalization gap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_pacgen.maths.rank_correlation import rank_correlation
from hf_pacgen.results.measures import Measures
from hf_pacgen.results.pacgen import PACGenResult
from hf_pacgen.results.sharpness import Sharpness
from hf_pacgen.results.spectrum import Spectrum
from hf_pacgen.results.worst_case import WorstCaseSharpness
from hf_pacgen.show.plots.style import BLUE, GRAY, compact, finish, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Result = PACGenResult | Sharpness | WorstCaseSharpness | Spectrum | Measures
# for every kind of result, the measure that is drawn
DEFAULTS: dict[type, str] = {
    PACGenResult: "kl_complexity_per_parameter",
    Measures: "kl_complexity_per_parameter",
    Sharpness: "mean",
    WorstCaseSharpness: "relative",
    Spectrum: "largest",
}


def plot_gap(
    results: Sequence[Result],
    gaps: Sequence[float] | None = None,
    *,
    measure: str | None = None,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Scatter of the generalization gap against a measure, one point a model, with Spearman's rank correlation.

    Args:
        results: of models that differ in how they were trained: all of one kind.
        gaps: test minus training loss of each; :class:`Measures` have their own.
        measure: name of a field of the results; by default K(η)/m, the mean or relative sharpness, or λ_max.
        labels: beside the points; :class:`Measures` have their names.

    Raises:
        ValueError: fewer than two results, other numbers of gaps or labels, a gap or measure that is missing or not
            finite, an unknown measure, results of several kinds.
    """
    if len(results) < 2:
        raise ValueError(f"A scatter needs at least 2 results; got {len(results)}.")
    kinds = {type(result) for result in results}
    if len(kinds) > 1 or not kinds <= DEFAULTS.keys():
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(f"results must all be of one kind that pacgen(), ..., measure_all() return; got {names}.")
    (kind,) = kinds
    field = measure or DEFAULTS[kind]
    x = [_value(result, field) for result in results]
    heights = [r.gap for r in results if isinstance(r, Measures)] if gaps is None else list(gaps)
    names_of = [r.name for r in results if isinstance(r, Measures)] if labels is None else list(labels)
    for what, given in (("gaps", heights), ("labels", names_of)):
        if len(given) != len(results) and (given or what == "gaps"):
            raise ValueError(f"{what} must have one entry for each of the {len(results)} results; got {len(given)}.")
    # a gap that is missing becomes NaN, to be refused with those that are not finite
    y = [float(gap) if gap is not None else math.nan for gap in heights]
    if not all(map(math.isfinite, [*x, *y])):
        raise ValueError(f"{field} and the gaps must be finite numbers; got {x} and {heights}. Measure these again.")
    ax = ax or new_axes(4.6, width=6.4)
    ax.scatter(x, y, s=52, color=BLUE, alpha=0.9, edgecolor="white", linewidth=0.8, zorder=3, label="one model each")
    ranked = sorted(zip(x, y, names_of, strict=False))
    for i, (across, up, name) in enumerate(ranked):  # in turn above and below, so that neighbors can be read
        ax.annotate(name, (across, up), (7, -11 if i % 2 else 4), textcoords="offset points", fontsize=8, color=GRAY)
    ax.margins(0.14, 0.12)
    facts = {"largest": Measures.facts()["largest_eigenvalue"], **results[0].facts()}.get(field)
    correlation = rank_correlation(x, y)
    said = "is undefined" if math.isnan(correlation) else f"{correlation:+.2f}"
    finish(
        ax,
        f"Generalization gap of {len(x)} models\nrank correlation (Spearman) {said}",
        x=facts.axis if facts and facts.label else field,
        y="gap: test minus training loss",
    )
    # finish() writes numbers short along the grid's axis only, and these may be as long
    ax.xaxis.set_major_formatter(lambda value, _: compact(value))
    return ax


def _value(result: Result, field: str) -> float:
    value = getattr(result, field, None)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(
            f"{type(result).__name__} has no number {field!r} to draw. Give the name of one of its numbers."
        )
    return float(value)
