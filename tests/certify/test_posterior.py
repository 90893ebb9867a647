"""The posterior's shape and KL against textbook formulas."""

from __future__ import annotations

import math

import pytest
import torch
from certificates import Head, batches, certified, problem
from torch.distributions import Independent, Normal, kl_divergence

from hf_pacgen.certify.posterior import DEFAULT_SCALES, Posterior, PriorScales, shaped_posterior
from hf_pacgen.config import CertificateConfig, Estimator
from hf_pacgen.maths.distributions import NoiseDistribution


@pytest.mark.parametrize("grouped", [False, True])
def test_kl_is_the_textbook_kl_at_the_best_scale_of_each_group(grouped):
    generator = torch.Generator().manual_seed(0)
    means = {name: torch.randn(4, generator=generator) for name in ("a.weight", "a.bias", "b.weight")}
    center = {"b.weight": torch.ones(4)}
    groups = {name: name[0] if grouped else "all" for name in means}
    scales = {name: torch.rand(4, generator=generator) * (0.1 if name[0] == "a" else 1) for name in means}
    posterior = Posterior(means=means, scales=scales, half_widths=None, distribution=NoiseDistribution.NORMAL)
    grid = [0.1, 0.5, 1.0, 3.0]
    fit = PriorScales(center, groups, grid).fit(posterior)

    def textbook(names: list[str], tau: float) -> float:
        q = [Independent(Normal(means[n].double(), scales[n].double()), 1) for n in names]
        p = [
            Independent(Normal(center.get(n, torch.zeros(4)).double(), torch.full((4,), tau).double()), 1)
            for n in names
        ]
        return sum(kl_divergence(a, b).item() for a, b in zip(q, p, strict=True))

    members = [["a.weight", "a.bias"], ["b.weight"]] if grouped else [list(means)]
    expected = sum(min(textbook(names, tau) for tau in grid) for names in members)
    assert fit.kl == pytest.approx(expected, rel=1e-9) and sum(fit.kl_by_name.values()) == pytest.approx(expected)
    mixed = [-torch.logsumexp(-torch.tensor([textbook(names, tau) for tau in grid]), 0).item() for names in members]
    assert fit.kl + fit.price == pytest.approx(sum(mixed) + len(members) * math.log(4), rel=1e-6)
    assert 0 < fit.price <= len(members) * math.log(4)


def test_shaped_noise_is_laplace(solved):
    means, curvature = {"w": torch.tensor([1.0, -2.0, 0.5])}, {"w": torch.tensor([4.0, 0.0, -3.0])}
    prior = PriorScales({}, {"w": "all"}, [1.5])
    scale = shaped_posterior(means, curvature, prior, eta=10.0, distribution=NoiseDistribution.NORMAL).scales["w"]
    assert torch.allclose(scale, torch.tensor([(40 + 1.5**-2) ** -0.5, 1.5, 1.5]))
    uniform = shaped_posterior(means, curvature, prior, eta=10.0, distribution=NoiseDistribution.UNIFORM)
    box = torch.tensor([0.2, 0.3, 0.15])
    assert torch.allclose(uniform.scales["w"], (3**0.5 * scale).minimum(box))


def exact_curvature(model: Head, features: torch.Tensor) -> dict[str, torch.Tensor]:
    p = model(features)["logits"].softmax(-1).detach()
    spread = p * (1 - p)
    return {
        "linear.weight": (spread.T @ features.square()) / len(features),
        "linear.bias": spread.mean(0),
    }


def test_the_noisy_error_is_that_of_the_posterior():
    """Against the closed form: a difference of two noisy logits is normal, so P(wrong) is a normal tail."""
    model, features, labels = problem(n=64)
    data = batches(features, labels, size=1)
    result = certified(
        model, data, CertificateConfig(eta=300.0, draws=40_000, estimator=Estimator.EXACT, refine_steps=0)
    )
    curvature = exact_curvature(model, features)
    prior = PriorScales({}, dict.fromkeys(curvature, "all"), DEFAULT_SCALES)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    posterior = shaped_posterior(weights, curvature, prior, eta=300.0, distribution=NoiseDistribution.NORMAL)
    logits = model(features)["logits"].detach()
    margin = (logits[:, 0] - logits[:, 1]) * (1 - 2 * labels)
    variance = posterior.scales["linear.weight"].square().sum(0) @ features.T.square()
    variance = variance + posterior.scales["linear.bias"].square().sum()
    expected = 0.5 * torch.erfc(margin / variance.sqrt() / math.sqrt(2)).mean().item()
    deviation = 4 * math.sqrt(expected * (1 - expected) / result.draws)
    assert result.draws >= 1000 and result.empirical_error == pytest.approx(expected, abs=deviation)
    assert expected > 2 * deviation


@pytest.mark.parametrize("least", [None, 0.5])
def test_the_price_is_that_of_the_mixture(least: float | None) -> None:
    """KL to the mixture itself, by numerical integration, is at most what is paid, and that at most a union bound."""
    posterior = Posterior(
        means={"w": torch.tensor([0.3])},
        scales={"w": torch.tensor([0.2])},
        half_widths=None,
        distribution=NoiseDistribution.NORMAL,
    )
    grid = [0.1, 0.25, 0.4, 2.0]
    fit = PriorScales({}, {"w": "all"}, grid, least=least).fit(posterior)
    weights = [0.25] * 4 if least is None else [0.5, *[0.5 / 3] * 3]
    x = torch.linspace(-3, 3, 200_001, dtype=torch.float64)
    q = Normal(0.3, 0.2).log_prob(x)
    parts = [math.log(v) + Normal(0.0, tau).log_prob(x) for v, tau in zip(weights, grid, strict=True)]
    true = ((q - torch.logsumexp(torch.stack(parts), 0)) * q.exp()).sum().item() * (6 / 200_000)
    assert true <= fit.kl + fit.price + 1e-6
    assert fit.scales["w"] == 0.4 and 0 < fit.price < math.log(1 / weights[2]) - 0.1
