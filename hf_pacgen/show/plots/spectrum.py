"""Picture of the spectral density of the Hessian."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hf_pacgen.results.spectrum import Spectrum
from hf_pacgen.show.plots.style import BLUE, ORANGE, headline, new_axes, plain
from hf_pacgen.show.wording import number, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_spectral_density"]

DECADES = 6
"""Below the highest point of the density, what is drawn; the tails of the kernel say nothing."""


def plot_spectral_density(
    spectrum: Spectrum, *, bandwidth: float | None = None, points: int = 1000, ax: Axes | None = None
) -> Axes:
    """The density of the eigenvalues on a logarithmic axis, and the eigenvalues that were found as triangles below.

    Filled triangles have converged, open ones have not.

    Args:
        spectrum: of :func:`hf_pacgen.hessian_spectrum`, with at least one probe.
        bandwidth: of the density, as for :meth:`Spectrum.density`.
        points: of the curve.
        ax: where to draw; by default on a figure of its own.

    Raises:
        ValueError: there is no density, or a bandwidth or a number of points that is not positive.
        ImportError: matplotlib is not installed.
    """
    if points < 2:
        raise ValueError(f"points must be at least 2; got {points}.")
    width = spectrum.bandwidth if bandwidth is None and spectrum.nodes else bandwidth
    spectrum.density(torch.zeros(1), bandwidth=width)  # refuses what cannot be drawn
    margin = 4 * (width or 1)
    grid = torch.linspace(min(spectrum.nodes) - margin, max(spectrum.nodes) + margin, points, dtype=torch.float64)
    density = spectrum.density(grid, bandwidth=width)
    ax = ax or new_axes(4.2)
    top = density.max().item()
    low = top / 10**DECADES
    ax.fill_between(grid.tolist(), low, density.clamp_min(low).tolist(), color=BLUE, alpha=0.25, lw=0)
    ax.plot(grid.tolist(), density.tolist(), color=BLUE, lw=1.6, label="spectral density")
    for found in (True, False):
        chosen = [v for v, c in zip(spectrum.eigenvalues, spectrum.converged, strict=True) if c is found]
        if chosen:
            face, label = (ORANGE, "eigenvalues found") if found else ("white", "not converged")
            at = [1.6 * low] * len(chosen)
            ax.plot(chosen, at, "^", color=ORANGE, markersize=8, markerfacecolor=face, label=label)
    plain(ax, grid="y")
    ax.set_yscale("log")
    ax.set_ylim(low, 3 * top)
    ax.set_xlabel("eigenvalue of the Hessian of the training loss")
    ax.set_ylabel("density (integrates to 1)")
    headline(
        ax,
        f"Spectrum of the Hessian of {spectrum.num_parameters:,} weights\n"
        f"largest found {number(spectrum.largest)}, trace {number(spectrum.trace or 0)}{spread(spectrum.trace_stderr)}",
        columns=3,
    )
    return ax
