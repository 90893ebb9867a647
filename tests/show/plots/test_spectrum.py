"""The picture of the spectral density: a curve that integrates to 1, and the eigenvalues found below it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import curves
from sample_results import sample_spectrum

from hf_pacgen.show.plots import plot_spectral_density, save_figure

SPECTRUM = sample_spectrum()


def test_the_density_and_the_eigenvalues_found() -> None:
    ax = plot_spectral_density(SPECTRUM, points=2001)
    drawn = curves(ax)
    x, y = (torch.tensor(v, dtype=torch.float64) for v in drawn["spectral density"])
    assert torch.trapezoid(y, x).item() == pytest.approx(1, abs=1e-3)
    assert torch.equal(y, SPECTRUM.density(x)) and ax.get_yscale() == "log"
    assert drawn["eigenvalues found"][0] == [8] and drawn["not converged"][0] == [4]
    assert ax.get_title(loc="left") == "Spectrum of the Hessian of 100 weights\nlargest found 8, trace 12.5 ± 0.25"
    wide = curves(plot_spectral_density(SPECTRUM, bandwidth=1.0))["spectral density"]
    assert max(wide[1]) < float(y.max()) and min(wide[0]) == -4
    one = sample_spectrum(eigenvalues=(0.0,), converged=(True,), nodes=(0.0,), weights=(1.0,))
    assert plot_spectral_density(one).get_xlim()[0] < 0


def test_the_axis_shows_six_decades_and_the_triangles_stand_inside() -> None:
    ax = plot_spectral_density(SPECTRUM)
    low, high = ax.get_ylim()
    top = max(curves(ax)["spectral density"][1])
    assert low == pytest.approx(top / 1e6) and high == pytest.approx(3 * top)
    assert low < curves(ax)["eigenvalues found"][1][0] < high


def test_without_a_trace_the_headline_has_no_spread() -> None:
    title = plot_spectral_density(sample_spectrum(trace=None, trace_stderr=None)).get_title(loc="left")
    assert title.endswith("largest found 8, trace 0")


def test_pictures_are_the_same_again(tmp_path: Path) -> None:
    first = save_figure(plot_spectral_density(SPECTRUM), tmp_path / "a.png").read_bytes()
    assert save_figure(plot_spectral_density(SPECTRUM), tmp_path / "b.png").read_bytes() == first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": 1}, "points must be at least 2; got 1"),
        ({"bandwidth": 0}, "bandwidth must be a finite number greater than 0; got 0"),
        ({"bandwidth": float("nan")}, "bandwidth must be a finite number greater than 0; got nan"),
    ],
)
def test_bad_input(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_spectral_density(SPECTRUM, **settings)
    with pytest.raises(ValueError, match=r"measured with probes=0\. Use at least one probe"):
        plot_spectral_density(sample_spectrum(nodes=()))
