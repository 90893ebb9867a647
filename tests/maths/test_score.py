"""Ψ and K(η) against a NumPy transcription of their definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from hf_pacgen import pacgen_score
from hf_pacgen.maths.score import ScoreTerms


def transcription(w: Any, h: Any, rho: float, gamma: float, epsilon: float, eta: float, m: int) -> ScoreTerms:
    n = gamma * np.abs(w) + epsilon
    root = np.sqrt(np.maximum(h + rho * np.sqrt(m) * n, 0))
    kl_root = np.sqrt(np.maximum(eta * (h / 3 + rho * np.sqrt(m) * n / 9), 0))
    hessian_root = np.sqrt(np.maximum(eta * h / 3, 0))
    total = np.log((np.abs(w) + n) * np.maximum(kl_root, 1 / n)).sum()
    size = np.log((np.abs(w) + n) / n).sum()
    alone = np.log(np.maximum(n * hessian_root, 1)).sum()
    return ScoreTerms(
        score=np.log((np.abs(w) + n) * np.maximum(root, 1 / n)).sum(),
        kl_complexity=total,
        kl_weights=size,
        kl_hessian=alone,
        kl_lipschitz=total - size - alone,
        kl_curvature=np.log(1 + eta * np.maximum(h, 0) * (gamma * w) ** 2 / 3).sum() / 2,
        num_active=int((root > 1 / n).sum()),
        num_kl_active=int((kl_root > 1 / n).sum()),
        num_parameters=w.size,
        smoothness=(rho * np.sqrt(m) * n).sum(),
    )


def same(got: ScoreTerms, expected: ScoreTerms, tolerance: float = 1e-12) -> None:
    for name, value in vars(expected).items():
        assert getattr(got, name) == pytest.approx(value, rel=tolerance, abs=1e-9), name


@pytest.mark.parametrize("gamma, epsilon", [(0.1, 0.1), (0.0, 0.05), (0.3, 0.0), (2.0, 1.0)])
@pytest.mark.parametrize("rho, eta", [(0.0, 1.0), (0.7, 2000.0), (30.0, 0.5)])
def test_score_is_its_definition(gamma: float, epsilon: float, rho: float, eta: float) -> None:
    rng = np.random.default_rng(0)
    w, h = rng.normal(size=5000), rng.normal(size=5000) * 300
    got = pacgen_score(torch.tensor(w), torch.tensor(h), rho, gamma=gamma, epsilon=epsilon, eta=eta)
    same(got, transcription(w, h, rho, gamma, epsilon, eta, 5000))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_are_in_float64_whatever_the_dtype(dtype: torch.dtype) -> None:
    # more elements than a chunk, so that chunks are added up too
    w = torch.randn(3, 500_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    h = torch.rand(3, 500_000, generator=torch.Generator().manual_seed(1)).to(dtype) * 200
    expected = transcription(w.double().numpy(), h.double().numpy(), 0.2, 0.1, 0.1, 9.0, w.numel())
    same(pacgen_score(w, h, 0.2, eta=9.0), expected, 1e-10)


@pytest.mark.parametrize("epsilon", [0.1, 0.0])
def test_the_parts_sum_to_the_complexity_and_are_not_negative(epsilon: float) -> None:
    rng = np.random.default_rng(1)
    w, h = torch.tensor(rng.normal(size=3000)), torch.tensor(rng.normal(size=3000) * 1000)
    w[:7] = 0.0
    terms = pacgen_score(w, h, 0.3, epsilon=epsilon, eta=2000.0)
    parts = (terms.kl_weights, terms.kl_hessian, terms.kl_lipschitz)
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(terms.kl_complexity, rel=1e-12)
    without = pacgen_score(w, h, 0.0, epsilon=epsilon, eta=2000.0)
    assert without.kl_lipschitz == pytest.approx(0, abs=1e-8)
    assert without.kl_complexity == pytest.approx(terms.kl_weights + terms.kl_hessian, rel=1e-12)


def test_curvature_alone_does_not_change_when_layers_are_rescaled() -> None:
    rng = np.random.default_rng(2)
    w, h = torch.tensor(rng.normal(size=500)), torch.tensor(rng.normal(size=500) ** 2 * 50)
    # w -> a w changes H_ii to H_ii/a^2 where another layer takes the factor 1/a
    plain = pacgen_score({"a": w, "b": w}, {"a": h, "b": h}, 0.7, epsilon=0.0, eta=1000.0)
    moved = pacgen_score({"a": 5 * w, "b": w / 5}, {"a": h / 25, "b": h * 25}, 0.7, epsilon=0.0, eta=1000.0)
    assert plain.kl_curvature > 1
    assert moved.kl_curvature == pytest.approx(plain.kl_curvature, rel=1e-12)
    assert moved.kl_hessian == pytest.approx(plain.kl_hessian, rel=1e-12)


def test_relative_epsilon_is_a_part_of_each_tensors_root_mean_square() -> None:
    w = {"a": torch.randn(40) * 3, "b": torch.randn(7) * 0.01, "zero": torch.zeros(5)}
    h = {name: torch.rand_like(value) * 90 for name, value in w.items()}
    got = pacgen_score(w, h, 0.2, epsilon=0.3, epsilon_scale="rms", eta=50.0)
    expected = ScoreTerms()
    for name in ("a", "b"):
        size = w[name].double().square().mean().sqrt().item()
        expected = expected + pacgen_score(w[name], h[name], 0.2, epsilon=0.3 * size, eta=50.0, num_parameters=52)
    assert got.kl_complexity == pytest.approx(expected.kl_complexity, rel=1e-9)
    assert got.num_parameters == 52
    alone = pacgen_score({"zero": w["zero"]}, {"zero": h["zero"]}, 0.2, epsilon_scale="rms")
    assert alone.kl_complexity == pytest.approx(0, abs=1e-6)


def test_an_unknown_scale_of_epsilon_is_refused() -> None:
    with pytest.raises(ValueError, match="scale must be one of 'absolute', 'rms'; got 'percent'"):
        pacgen_score(torch.ones(2), torch.ones(2), 0.0, epsilon_scale="percent")


def test_score_adds_over_tensors_and_takes_m_from_outside() -> None:
    w, h = torch.randn(40), torch.rand(40) * 500
    whole = pacgen_score(w, h, 0.3, eta=5.0)
    parts = pacgen_score({"a": w[:15], "b": w[15:]}, {"a": h[:15], "b": h[15:]}, 0.3, eta=5.0)
    shards = pacgen_score(w[:15], h[:15], 0.3, eta=5.0, num_parameters=40) + pacgen_score(
        w[15:], h[15:], 0.3, eta=5.0, num_parameters=40
    )
    same(parts, whole)
    same(shards, whole)


def test_a_weight_of_zero_with_epsilon_zero_takes_the_limit() -> None:
    curvature = torch.tensor([1e6])
    limit = pacgen_score(torch.tensor([1e-30]), torch.zeros(1), 0.0, gamma=0.1, epsilon=0.0).score
    terms = pacgen_score(torch.zeros(1), curvature, 2.0, gamma=0.1, epsilon=0.0)
    assert terms.score == terms.kl_complexity == pytest.approx(limit) == pytest.approx(math.log(11))
    assert terms.num_active == terms.num_kl_active == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gamma": -0.1}, "gamma and epsilon must be"),
        ({"gamma": 0.0, "epsilon": 0.0}, "not both 0"),
        ({"eta": 0.0}, "eta must be a positive"),
        ({"eta": math.nan}, "eta must be a positive"),
        ({"hessian_lipschitz": -1.0}, "hessian_lipschitz must be a finite number >= 0"),
        ({"hessian_diagonal": torch.ones(3)}, r"'weights' has \(2,\) and \(3,\)"),
        ({"hessian_diagonal": torch.tensor([1.0, math.nan])}, "hessian_diagonal must be finite"),
        ({"weights": torch.tensor([1.0, math.inf])}, "weights must be finite"),
        ({"hessian_diagonal": {"a": torch.ones(2)}}, "must both be tensors"),
        ({"weights": {"b": torch.ones(2)}, "hessian_diagonal": {"a": torch.ones(2)}}, "in one only: \\['a', 'b'\\]"),
    ],
)
def test_bad_values_are_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"weights": torch.ones(2), "hessian_diagonal": torch.ones(2), "hessian_lipschitz": 0.0}
    with pytest.raises(ValueError, match=message):
        pacgen_score(**(good | change))
