"""The search for a posterior, and the fresh draws that certify it."""

from __future__ import annotations

import dataclasses

from certificates import QUICK, certified

from hf_pacgen.certify import draws
from hf_pacgen.config import CertificateConfig


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


def test_draws_stop_when_they_hardly_matter(solved):
    model, data = solved
    short = certified(model, data, CertificateConfig(eta=300.0, draws=10**5))
    correction, gap = short.empirical_bound - short.empirical_error, short.bound - short.empirical_bound
    assert short.draws < 10**5 / 2 and correction <= 0.1 * gap
