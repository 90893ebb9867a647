"""Reliability diagram: how often a model is right, by how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_pacgen.results.noisy_predictions import NoisyPredictions
from hf_pacgen.show.plots.style import BLUE, GRAY, ORANGE, finish, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALLEST, LARGEST = 10.0, 260.0  # areas of the points, in square points


def plot_reliability(predictions: NoisyPredictions, *, ax: Axes | None = None) -> Axes:
    """Accuracy over mean confidence in 15 bins, with noise and without; on the diagonal a model is calibrated.

    A point's area is the number of predictions in its bin.  Below the diagonal a model is too sure of itself.

    Raises:
        ValueError: predictions without labels.
    """
    if not predictions.bin_count:
        raise ValueError(
            "There is no reliability to draw: the predictions have no labels to be right or wrong by. Predict on "
            "labeled data."
        )
    ax = ax or new_axes(4.6, width=5.6)
    ax.plot([0, 1], [0, 1], color=GRAY, lw=1, ls="--", label="calibrated")
    plain = predictions.plain_bins
    if plain and predictions.noise_scale > 0:
        _points(ax, plain["bin_confidence"], plain["bin_accuracy"], plain["bin_count"], ORANGE, "without noise")
    _points(
        ax,
        predictions.bin_confidence,
        predictions.bin_accuracy,
        predictions.bin_count,
        BLUE,
        f"{predictions.draws} draws",
    )
    without = (
        f", without noise {100 * plain_ece:.1f} %" if (plain_ece := predictions.plain.get("ece")) is not None else ""
    )
    finish(
        ax,
        f"Reliability of {predictions.num_predictions:,} {predictions.unit}s\n"
        f"ECE {100 * (predictions.ece or 0):.1f} %{without}",
        x="confidence, the probability of the predicted class",
        y="accuracy",
        columns=3,
    )
    ax.set_xlim(0, 1.02)
    ax.set_ylim(0, 1.02)
    return ax


def _points(ax: Axes, x: Sequence[float], y: Sequence[float], count: Sequence[float], color: str, label: str) -> None:
    most = max(count)
    ax.plot(x, y, color=color, lw=1.2, alpha=0.7)
    areas = [SMALLEST + (LARGEST - SMALLEST) * n / most for n in count]
    ax.scatter(x, y, s=areas, color=color, alpha=0.6, lw=0, label=label)
