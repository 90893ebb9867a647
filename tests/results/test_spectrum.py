"""The result of a spectrum: its density against integrals in closed form, its largest eigenvalue, and files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from sample_results import sample_spectrum
from torch import Tensor

from hf_pacgen.errors import InputError
from hf_pacgen.results.spectrum import Spectrum


def points(low: float, high: float, count: int = 40_001) -> Tensor:
    return torch.linspace(low, high, count, dtype=torch.float64)


def test_the_density_is_a_sum_of_gaussians() -> None:
    """Its mass, mean and variance are those of the nodes, with the bandwidth's added."""
    spectrum, width = sample_spectrum(), 0.3  # of four nodes
    nodes, weights = (torch.tensor(v, dtype=torch.float64) for v in (spectrum.nodes, spectrum.weights))
    x = points(-5, 15)
    density = spectrum.density(x, bandwidth=width)
    mean = (nodes * weights).sum()
    variance = ((nodes - mean).square() * weights).sum() + width**2
    moments = [torch.trapezoid(density * f, x) for f in (torch.ones_like(x), x, (x - mean).square())]
    torch.testing.assert_close(torch.stack(moments), torch.stack([weights.sum(), mean, variance]), rtol=1e-9, atol=0)


def test_one_point_mass_is_the_normal_density() -> None:
    single = sample_spectrum(nodes=(2.0,), weights=(1.0,))
    x = points(1, 3, 7)
    expected = torch.distributions.Normal(2.0, 0.5).log_prob(x).exp()
    torch.testing.assert_close(single.density(x, bandwidth=0.5), expected.double(), rtol=1e-6, atol=0)
    at = single.density(torch.full((2, 3), 2.0), bandwidth=0.5)  # any shape
    assert at.shape == (2, 3) and at[0, 0].item() == pytest.approx(1 / (0.5 * math.sqrt(2 * math.pi)), rel=1e-12)


def test_the_bandwidth_is_a_hundredth_of_the_range_or_of_the_only_place() -> None:
    assert sample_spectrum().bandwidth == pytest.approx(0.08)
    assert sample_spectrum(nodes=(-3.0, -3.0)).bandwidth == pytest.approx(0.03)
    assert sample_spectrum(nodes=(0.0,)).bandwidth == 0.01
    x = points(-1, 9, 101)
    assert sample_spectrum().density(x).equal(sample_spectrum().density(x, bandwidth=sample_spectrum().bandwidth))


@pytest.mark.parametrize("bandwidth", [0, -1.0, math.nan, math.inf])
def test_a_bandwidth_that_is_none(bandwidth: float) -> None:
    with pytest.raises(ValueError, match=f"bandwidth must be a finite number greater than 0; got {bandwidth}"):
        sample_spectrum().density(torch.zeros(1), bandwidth=bandwidth)


def test_without_probes_there_is_no_density() -> None:
    without = sample_spectrum(nodes=(), weights=(), trace=None, trace_stderr=None, probes=0)
    with pytest.raises(ValueError, match=r"no spectral density: it was measured with probes=0\. Use at least one"):
        without.density(torch.zeros(1))


def test_the_largest_is_the_largest_whatever_comes_first() -> None:
    assert sample_spectrum(eigenvalues=(-9.0, 4.0, -1.0)).largest == 4.0  # by magnitude, say


def test_a_file_keeps_everything_but_the_eigenvectors(tmp_path: Path) -> None:
    found = sample_spectrum(status=("Two did not converge.",), config={"k": 2})
    kept = sample_spectrum(status=found.status, config=found.config, eigenvectors=({"w": torch.ones(2)},))
    kept.save(tmp_path / "spectrum.json")
    read = Spectrum.load(tmp_path / "spectrum.json")
    assert read == found and read.notes == ("Two did not converge.",)
    assert isinstance(read.eigenvalues, tuple) and isinstance(read.converged[0], bool)


def test_eigenvalues_that_are_no_numbers() -> None:
    with pytest.raises(InputError, match="'eigenvalues' must be"):
        Spectrum.from_dict(sample_spectrum().to_dict() | {"eigenvalues": ["large"]})
