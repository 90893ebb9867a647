"""What all pictures share: a figure without pyplot's state, colors, what surrounds the data, and how one is saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_pacgen.show.wording import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which the color-blind can tell apart.
BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#555555"
WIDTH = 8.0  # of a figure, in inches


def save_figure(ax: Axes, path: str | os.PathLike[str], *, dpi: int = 150) -> Path:
    """Write the figure of these Axes as PNG or SVG, by the name's ending; the same picture gives the same bytes.

    Raises:
        ValueError: another ending.
        FileNotFoundError: the folder does not exist.
    """
    import matplotlib

    target = Path(path)
    kind = target.suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise ValueError(f"Cannot write {target}: expected a name that ends in .png or .svg.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {target}: the folder {target.parent} does not exist. Make it first.")
    # the date and the release of matplotlib would make the same picture another file
    undated: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "hf_pacgen"}):
        ax.figure.canvas.figure.savefig(target, format=kind, dpi=dpi, metadata=undated)
    return target


def new_axes(height: float, *, width: float = WIDTH) -> Axes:
    """Axes on a figure of their own, of that size in inches."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib, which is not installed: pip install "hf_pacgen[plots]".') from error
    # not pyplot.figure(), which keeps every figure of the process and is not made for threads
    figure = Figure(figsize=(width, height), layout="constrained")  # makes room for labels of any length
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def finish(ax: Axes, title: str, *, x: str, y: str = "", grid: Literal["x", "y"] = "y", columns: int = 2) -> None:
    """What surrounds the data: a frame of two sides, a faint grid, short numbers, labels, a title and the legend."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(colors="#333333", labelsize=8.5)
    axis = ax.xaxis if grid == "x" else ax.yaxis
    axis.set_major_formatter(lambda value, _: compact(value))
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    # the legend is a row below the title: inside the axes it would cover bars
    row: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.3, "borderpad": 0}
    ax.legend(ncols=columns, frameon=False, fontsize=8.5, **row)
    ax.set_title(title, fontsize=10.5, loc="left", pad=22)


def compact(value: float) -> str:
    """As :func:`number`, and millions as such: 1,234, 21.94 M, 1.5 G."""
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.4g} {letter}"
    return number(value)
