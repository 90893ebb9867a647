"""Pictures of the loss along a line or in a plane through a solution, with the noise box."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hf_pacgen.results.landscape import LossSlice
from hf_pacgen.show.plots.style import BLUE, ORANGE, finish, new_axes
from hf_pacgen.show.wording import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = 14


def plot_loss_slice(slice: LossSlice, *, ax: Axes | None = None) -> Axes:
    """The loss along a line as a curve, or in a plane as contours, with the noise box |u_i| ≤ N_i drawn in.

    Args:
        slice: of :func:`hf_pacgen.measures.landscape.loss_slice`.
    """
    return _line(slice, ax) if slice.losses.ndim == 1 else _plane(slice, ax)


def _line(slice: LossSlice, ax: Axes | None) -> Axes:
    ax = ax or new_axes(4.2)
    (steps,) = slice.steps
    low, high = max(slice.box[0].item(), steps[0].item()), min(slice.box[1].item(), steps[-1].item())
    # 1e-9: the ends of the box may be points of the line, up to rounding
    inside = slice.losses[(steps >= low - 1e-9) & (steps <= high + 1e-9)]
    ax.axvspan(low, high, color=ORANGE, alpha=0.15, lw=0, label="noise box |u| ≤ N")
    ax.plot(steps.tolist(), slice.losses.tolist(), color=BLUE, lw=1.8, label="training loss")
    ax.plot([0], [slice.loss], "o", color=ORANGE, markersize=7, label="solution", zorder=3)
    ax.set_xlim(steps[0].item(), steps[-1].item())
    finish(
        ax,
        f"Loss along a line through a solution of {slice.num_parameters:,} weights\n"
        f"{number(slice.loss)} at the solution, at most {number(inside.max().item())} in the box",
        x=slice.names[0],
        y=slice.facts()["loss"].label,
        columns=3,
    )
    return ax


def _plane(slice: LossSlice, ax: Axes | None) -> Axes:
    ax = ax or new_axes(5.4, width=6.6)
    across, up = slice.steps
    losses = slice.losses.t().tolist()
    low, high = slice.losses.min().item(), slice.losses.max().item()
    # levels even in the square root show the bottom of a valley as well as its walls
    share = torch.linspace(0, 1, LEVELS + 1, dtype=torch.float64).square()
    levels = (low + (high - low or 1.0) * share).tolist()
    filled = ax.contourf(across.tolist(), up.tolist(), losses, levels=levels, cmap="Blues", extend="both")
    ax.contour(across.tolist(), up.tolist(), losses, levels=levels, colors="white", linewidths=0.5)
    bar = ax.figure.colorbar(filled, ax=ax, ticks=levels[::2], label=slice.facts()["loss"].label)
    bar.ax.set_yticklabels([number(float(f"{level:.3g}")) for level in levels[::2]], fontsize=8)
    box = slice.box[slice.box.isfinite().all(1)]
    if len(box):
        ax.plot(box[:, 0].tolist(), box[:, 1].tolist(), color=ORANGE, lw=1.8, label="noise box |u| ≤ N")
    ax.plot([0], [0], "o", color=ORANGE, markersize=7, label="solution")
    ax.set_xlim(across[0].item(), across[-1].item())
    ax.set_ylim(up[0].item(), up[-1].item())
    finish(
        ax,
        f"Loss in a plane through a solution of {slice.num_parameters:,} weights\n"
        f"{number(slice.loss)} at the solution, {number(low)} to {number(high)} in the picture",
        x=slice.names[0],
        y=slice.names[1],
    )
    ax.grid(False)  # which would lie over the contours
    return ax
