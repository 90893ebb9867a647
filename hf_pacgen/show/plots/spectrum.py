"""Picture of the spectral density of the Hessian."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hf_pacgen.results.spectrum import Spectrum
from hf_pacgen.show.plots.style import BLUE, ORANGE, finish, new_axes
from hf_pacgen.show.wording import number, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECADES = 6  # below the highest point of the density, what is drawn; the tails of the kernel say nothing


def plot_spectral_density(
    spectrum: Spectrum, *, bandwidth: float | None = None, points: int = 1000, ax: Axes | None = None
) -> Axes:
    """The density of the eigenvalues on a logarithmic axis, and the eigenvalues that were found as triangles below.

    Filled triangles have converged, open ones have not.

    Args:
        spectrum: of :func:`hf_pacgen.hessian_spectrum`, with at least one probe.
        bandwidth: of the density, as for :meth:`Spectrum.density`.
        points: of the curve.

    Raises:
        ValueError: there is no density, or a bandwidth or a number of points that is not positive.
    """
    if points < 2:
        raise ValueError(f"points must be at least 2; got {points}.")
    width = spectrum.bandwidth if bandwidth is None and spectrum.nodes else bandwidth
    spectrum.density(torch.zeros(1), bandwidth=width)  # refuses what cannot be drawn
    margin = 4 * (width or 1)  # further out the kernel of the last node is nothing
    grid = torch.linspace(min(spectrum.nodes) - margin, max(spectrum.nodes) + margin, points, dtype=torch.float64)
    density = spectrum.density(grid, bandwidth=width)
    ax = ax or new_axes(4.2)
    top = density.max().item()
    low = top / 10**DECADES
    ax.fill_between(grid.tolist(), low, density.clamp_min(low).tolist(), color=BLUE, alpha=0.25, lw=0)
    ax.plot(grid.tolist(), density.tolist(), color=BLUE, lw=1.6, label="spectral density")
    for converged, face, label in ((True, ORANGE, "eigenvalues found"), (False, "white", "not converged")):
        chosen = [v for v, c in zip(spectrum.eigenvalues, spectrum.converged, strict=True) if c is converged]
        if chosen:
            at = [1.6 * low] * len(chosen)
            ax.plot(chosen, at, "^", color=ORANGE, markersize=8, markerfacecolor=face, label=label)
    found = (
        f"largest found {number(spectrum.largest)}, trace {number(spectrum.trace or 0)}{spread(spectrum.trace_stderr)}"
    )
    finish(
        ax,
        f"Spectrum of the Hessian of {spectrum.num_parameters:,} weights\n{found}",
        x="eigenvalue of the Hessian of the training loss",
        y="density (integrates to 1)",
        columns=3,
    )
    ax.set_yscale("log")  # after finish(), whose numbers are for linear axes
    ax.set_ylim(low, 3 * top)
    return ax
