"""Runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_pacgen.results.measures import Measures
from hf_pacgen.show.plots.style import BLUE, finish, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_runs(results: Sequence[Measures], *, measure: str | None = None, ax: Axes | None = None) -> Axes:
    """A measure of every run with its 95 % interval, in the order given.

    Args:
        results: of :func:`measure_all`, or of the file that ``hf-pacgen compare`` writes.
        measure: name of a field; by default K(η), per parameter where the runs differ in size.

    Raises:
        ValueError: no results, or one that lacks the measure.
    """
    if not results:
        raise ValueError("A picture of runs needs at least one result; got none.")
    one_size = len({row.num_parameters for row in results}) == 1
    field = measure or ("kl_complexity" if one_size else "kl_complexity_per_parameter")
    values = [value for row in results if (value := getattr(row, field, None)) is not None]
    if len(values) < len(results):
        raise ValueError(f"Not all of the results have {field!r}: measure it, or choose another with measure=.")
    ax = ax or new_axes(3.6)
    places = list(range(len(values)))
    half = [1.96 * (_stderr(row, field) or 0.0) for row in results]
    ax.errorbar(places, values, yerr=half, fmt="o", color=BLUE, capsize=3, label="with the 95 % interval")
    ax.set_xticks(places, [row.name for row in results], rotation=30, ha="right")
    facts = Measures.facts()[field]
    finish(ax, f"{facts.label} of {len(values)} runs", x="", y=facts.axis)
    return ax


def _stderr(row: Measures, field: str) -> float | None:
    total = field.removesuffix("_per_parameter")
    found: float | None = getattr(row, f"{total}_stderr", None)
    return found if found is None or total == field else found / row.num_parameters
