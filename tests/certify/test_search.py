"""The search for a posterior, and the fresh draws that certify it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from certificates import QUICK, certified

from hf_pacgen.certify import draws
from hf_pacgen.certify.search import draws_share, noisy_error_bound
from hf_pacgen.config import CertificateConfig
from hf_pacgen.maths.pac_bayes import effective_draws, monte_carlo_bound


def test_the_search_finds_a_better_temperature(solved):
    model, data = solved
    found = certified(model, data, CertificateConfig(draws=100))
    for eta in (3.0, 1e6, "n"):
        fixed = dataclasses.replace(QUICK, eta=eta)  # type: ignore[arg-type]
        assert found.bound <= certified(model, data, fixed).bound + (0.01 if eta == "n" else 0)


def test_the_draws_that_certify_were_not_searched_with(solved, monkeypatch):
    """The posterior was chosen for its error under the searched draws: only fresh ones are independent of it."""
    keys: list[tuple[str, ...]] = []
    stream = draws.NoiseStream.__init__

    def spy(self, posterior, *key, **settings):
        keys.append(key)
        stream(self, posterior, *key, **settings)

    monkeypatch.setattr(draws.NoiseStream, "__init__", spy)
    result = certified(solved[0], solved[1], CertificateConfig(draws=200, refine_steps=3))
    searched, final = ([key for key in keys if key[2] == word] for word in ("search", "certificate"))
    assert len(set(final)) == len(final) == result.draws / 50 and searched and not set(searched) & set(final)


def test_the_draws_share_of_delta() -> None:
    assert draws_share(100, 9900.0) == draws_share(1, 1e9) == 0.01 and draws_share(10**6, 10.0) == 0.5
    # the best of all splits of δ, to first order
    n, draws_, delta = 500, 2000.0, 0.05
    best = draws_share(n, draws_)

    def cost(share: float) -> float:
        return math.log(1 / (delta * (1 - share))) / n + math.log(1 / (delta * share)) / draws_

    assert all(cost(best) <= cost(best + step) for step in (-0.05, 0.05, 0.2))


def test_the_bound_on_the_noisy_error_holds_as_often_as_promised() -> None:
    """Batches of unequal sizes and error rates, whose errors hang together: what noise on the weights makes of them."""
    sizes = [8] * 30 + [3]
    rates = torch.linspace(0.02, 0.5, len(sizes), dtype=torch.float64)
    truth = sum(rate * size for rate, size in zip(rates.tolist(), sizes, strict=True)) / sum(sizes)
    generator, failures, trials, delta = torch.Generator().manual_seed(0), 0, 400, 0.2
    for _ in range(trials):
        # all of a batch is wrong at once, or each for itself
        together = torch.rand(len(sizes), generator=generator, dtype=torch.float64) < rates
        found = []
        for b, size in enumerate(sizes):
            alone = int((torch.rand(size, generator=generator, dtype=torch.float64) < rates[b]).sum())
            found.append((float(size * together[b] if b % 2 else alone), size))
        failures += noisy_error_bound(found, effective_draws(sizes), delta) < truth
    assert failures / trials <= delta + 2 * math.sqrt(delta * (1 - delta) / trials)
    quiet = [(1.0, 8)] * 4000
    assert (
        0.125 < noisy_error_bound(quiet, 4000.0, 0.01) < monte_carlo_bound(0.125, 4000.0, 0.01, one_sided=True) - 0.01
    )
    assert (
        noisy_error_bound([(0.0, 4)], 1.0, 0.1) == pytest.approx(0.95) and noisy_error_bound([(4.0, 4)], 1.0, 0.1) == 1
    )


def test_draws_stop_when_they_hardly_matter(solved):
    model, data = solved
    short = certified(model, data, CertificateConfig(eta=300.0, draws=10**5))
    correction, gap = short.empirical_bound - short.empirical_error, short.bound - short.empirical_bound
    assert short.draws < 10**5 / 2 and correction <= 0.05 * gap
