"""What was drawn on axes, in numbers."""

from __future__ import annotations

from matplotlib.axes import Axes


def curves(ax: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """The points of every line, by its label."""
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}  # type: ignore[arg-type]
