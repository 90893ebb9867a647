"""Standard errors of scores: against the spread over many repetitions, on diagonals that are drawn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hf_pacgen.maths.score import coordinate_terms
from hf_pacgen.maths.score_errors import DiagonalSample, Part, ScoreErrors

GROUPS, SIZE, ETA = 8, 300, 500.0
WEIGHTS = torch.linspace(-2, 2, SIZE, dtype=torch.float64)
TRUE = torch.linspace(0.5, 4, SIZE, dtype=torch.float64) ** 2


def value(diagonal: Tensor, rho: float = 0.0) -> Tensor:
    terms = coordinate_terms(WEIGHTS, diagonal, rho, gamma=0.1, epsilon=0.1, eta=ETA)
    sums = (terms.score, terms.kl_complexity, terms.kl_complexity - terms.kl_weights, terms.kl_curvature)
    return torch.stack([part.sum() for part in sums])


def errors(
    parts: list[Part], rho: float = 0.0, rho_stderr: float | None = 0.0, **known: bool
) -> dict[str, float | None]:
    sample = DiagonalSample({"w": torch.arange(SIZE)}, {"w": 1.0}, parts, **known)
    found = ScoreErrors(sample, rho, rho_stderr, root=1.0, gamma=0.1, eta=ETA)
    found.add("w", WEIGHTS, epsilon=0.1)
    return found.finish()


def drawn(seed: int, noise: float, mean: Tensor = TRUE, shared: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(GROUPS, SIZE, generator=generator, dtype=torch.float64)
    common = torch.randn(GROUPS, 1, generator=generator, dtype=torch.float64)
    groups = mean * (1 + noise * own + shared * common)
    return groups, groups.mean(0)


@pytest.mark.parametrize("noise, shared", [(0.3, 0.0), (0.1, 0.5), (2.0, 0.0), (2.0, 1.0)])
def test_the_interval_covers_the_value_of_the_true_diagonal(noise: float, shared: float) -> None:
    # noise of a group up to twice the entries: then its shift of the mean is the larger part of the error
    true, covered = value(TRUE), torch.zeros(4)
    for seed in range(60):
        groups, mean = drawn(seed, noise, shared=shared)
        found = errors([Part({"w": 1.0}, {"w": groups}, torch.ones(GROUPS, dtype=torch.float64))])
        stderr = torch.tensor([found[name] for name in ("score", "kl_complexity", "kl_excess", "kl_curvature")])
        covered += (value(mean) - true).abs() <= 1.96 * stderr + 1e-9
    assert (covered >= 0.85 * 60).all(), covered


def test_what_a_blend_misses_is_part_of_its_error() -> None:
    # the quiet part has half of the curvature: its own spread shows nothing of that
    true, covered = value(TRUE), 0
    for seed in range(40):
        noisy, _ = drawn(seed, 2.0)
        quiet, mean = drawn(1000 + seed, 0.01, TRUE / 2)
        units = torch.ones(GROUPS, dtype=torch.float64)
        found = errors([Part({"w": 0.0}, {"w": noisy}, units), Part({"w": 1.0}, {"w": quiet}, units)])
        assert found["kl_curvature"] is not None
        covered += bool((value(mean) - true)[3].abs() <= 1.96 * found["kl_curvature"])
        alone = errors([Part({"w": 1.0}, {"w": quiet}, units)])["kl_curvature"]
        assert alone is not None and (value(mean) - true)[3].abs() > 1.96 * alone
    assert covered >= 34


def test_the_error_of_rho_is_carried_through() -> None:
    exact = [Part({"w": 1.0}, {"w": TRUE.repeat(GROUPS, 1)}, torch.ones(GROUPS, dtype=torch.float64))]
    found = errors(exact, rho=50.0, rho_stderr=5.0, exact=True)
    up, down = value(TRUE, 50 * math.exp(0.1)), value(TRUE, 50 * math.exp(-0.1))
    assert found["kl_complexity"] == pytest.approx(((up - down)[1] / 2).item(), rel=1e-9)
    assert found["kl_curvature"] == 0  # which has no ρ


def test_what_is_unknown_is_none() -> None:
    part = Part({"w": 1.0}, {"w": TRUE.repeat(GROUPS, 1)}, torch.ones(GROUPS, dtype=torch.float64))
    one = Part({"w": 1.0}, {"w": TRUE.repeat(GROUPS, 1)}, torch.eye(GROUPS, dtype=torch.float64)[0])
    for found in (errors([part], biased=True), errors([one])):
        assert set(found.values()) == {None}
    found = errors([part], rho=1.0, rho_stderr=None)
    assert found.pop("kl_curvature") is not None  # which has no ρ
    assert set(found.values()) == {None}


def test_a_median_of_0_with_larger_ratios_beside_it_has_an_error_too() -> None:
    exact = [Part({"w": 1.0}, {"w": TRUE.repeat(GROUPS, 1)}, torch.ones(GROUPS, dtype=torch.float64))]
    found = errors(exact, rho=0.0, rho_stderr=40.0, exact=True)
    assert found["kl_complexity"] == pytest.approx(((value(TRUE, 80.0) - value(TRUE, 0.0))[1] / 2).item())
    assert found["kl_complexity"] is not None and found["kl_complexity"] > 1


def test_groups_of_unequal_size_and_empty_ones_pool_by_their_units() -> None:
    units = torch.tensor([1.0, 3.0, 0.0, 2.0], dtype=torch.float64)
    means = torch.rand(4, SIZE, dtype=torch.float64)
    part = Part({"w": 1.0}, {"w": means * units.unsqueeze(1)}, units)
    kept = torch.tensor([[1.0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 0]])
    pooled = (means * units.unsqueeze(1)).sum(0) / 6
    torch.testing.assert_close(part.mean("w", kept)[0], pooled)
    torch.testing.assert_close(part.mean("w", kept)[1], (3 * means[1] + 2 * means[3]) / 5)
    torch.testing.assert_close(part.mean("w", kept)[2], pooled)  # nothing kept: all of it
