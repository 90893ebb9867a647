"""Picture of what abstaining buys: the error of what is answered, against how much that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_pacgen.maths.held_out_bounds import exact_error_bound
from hf_pacgen.results.promise import ABSTAIN, Promise
from hf_pacgen.show.plots.style import BLUE, GRAY, ORANGE, finish, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_coverage_risk(promise: Promise, *, ax: Axes | None = None) -> Axes:
    """The error among the answers over the share that is answered, threshold by threshold, on the held-out examples.

    The band reaches up to the exact bound at the promise's δ of each threshold by itself; what is promised is the
    threshold that is marked, by the sequence of tests, and no other.

    Raises:
        ValueError: a promise without thresholds to abstain by.
    """
    if promise.rule != ABSTAIN or not promise.curve:
        raise ValueError("There is no curve to draw: it is of a promise that was made with max_error=.")
    steps = [entry for entry in promise.curve.values() if entry["answered"] > 0]
    total = max(entry["answered"] for entry in promise.curve.values()) or 1.0
    if promise.coverage and promise.answered:
        total = promise.answered / promise.coverage  # of all that were judged; the last threshold may leave out some
    steps.sort(key=lambda entry: entry["answered"])
    x = [100 * entry["answered"] / total for entry in steps]
    y = [100 * entry["errors"] / entry["answered"] for entry in steps]
    top = [100 * exact_error_bound(int(e["errors"]), int(e["answered"]), promise.share) for e in steps]
    ax = ax or new_axes(4.2)
    ax.fill_between(x, y, top, color=BLUE, alpha=0.2, lw=0, label="up to the exact bound")
    ax.plot(x, y, "o-", color=BLUE, lw=1.6, markersize=4, label="held-out errors")
    target = 100 * (promise.target or 0)
    ax.axhline(target, color=GRAY, lw=1, ls="--", label=f"asked for: {target:.4g} %")
    if promise.threshold is not None and promise.answered:
        at = 100 * (promise.coverage or 0), 100 * (promise.answered_errors or 0) / promise.answered
        ax.plot(*at, "o", color=ORANGE, markersize=9, label=f"promised: ≥ {promise.threshold:.4g}")
    finish(
        ax,
        f"Errors among the answers\n{promise.num_examples:,} held-out {promise.unit}s, δ = {promise.delta:g} for all",
        x=f"{promise.unit}s answered, in %",
        y="wrong among them, in %",
        columns=4,
    )
    ax.set_xlim(0, 102)
    ax.set_ylim(bottom=0, top=min(100.0, 1.1 * max([target, *y, *top[len(top) // 4 :]])))
    return ax
