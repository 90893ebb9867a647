"""The draws of the noise: one for each batch, around the posterior's means, the same on any number of processes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from certificates import QUICK, batches, certified, problem

from hf_pacgen.certify import draws
from hf_pacgen.certify.draws import NoiseStream, planned_passes
from hf_pacgen.certify.error_rate import ErrorRate
from hf_pacgen.certify.posterior import Posterior
from hf_pacgen.config import CertificateConfig
from hf_pacgen.curvature.displacement import SavedWeights
from hf_pacgen.maths.distributions import NoiseDistribution
from hf_pacgen.measures.session import session


def test_every_batch_has_its_own_draw_and_ragged_batches_count_less():
    model, features, labels = problem(n=50)
    result = certified(model, batches(features, labels), CertificateConfig(eta=300.0, draws=1))
    assert result.n == 50 and result.draws == 50 / 8
    assert planned_passes(1, [8, 8, 2]) == [1] and planned_passes(10_000, [8] * 1500) == [1, 2, 4, 7]


def test_large_data_is_not_kept_in_memory(solved, monkeypatch):
    kept = certified(*solved)
    monkeypatch.setattr(draws, "CACHE_BYTES", 1000)
    assert dataclasses.replace(certified(*solved), seconds=kept.seconds) == kept
    assert certified(solved[0], solved[1], dataclasses.replace(QUICK, refine_steps=2)).refinement is not None


@pytest.mark.parametrize("distribution", list(NoiseDistribution))
def test_noise_streams(distribution):
    shape = (7, 3)
    posterior = Posterior(
        means={"w": torch.zeros(shape)},
        scales={"w": torch.full(shape, 0.5)},
        half_widths={"w": torch.full(shape, 1.0)} if distribution is NoiseDistribution.TRUNCATED_NORMAL else None,
        distribution=distribution,
    )
    forward = NoiseStream(posterior, 0, "a")
    drawn = [forward[i]["w"].clone() for i in range(200)]
    backward = NoiseStream(posterior, 0, "a")
    assert all(torch.equal(backward[i]["w"], drawn[i]) for i in reversed(range(0, 200, 9)))
    assert len({tuple(d.flatten().tolist()) for d in drawn}) == 200
    assert not torch.equal(NoiseStream(posterior, 0, "b")[0]["w"], drawn[0])
    moment = torch.stack(drawn).square().mean()
    assert moment == pytest.approx(posterior.noise("w").second_moment().mean().item(), rel=0.05)


def test_noise_is_drawn_around_the_means_of_the_posterior(solved):
    """Hardly any noise around -w turns every answer into its opposite."""
    model, data = solved
    with session(model, data) as (objective, _):
        with SavedWeights(objective.parameters) as saved:
            noisy = draws.NoisyErrors(objective, ErrorRate(objective), saved, seed=0)
            tiny = {name: torch.full_like(w, 1e-6) for name, w in saved.copy.items()}
            error = [
                noisy.mean(
                    Posterior(
                        means={name: sign * w for name, w in saved.copy.items()},
                        scales=tiny,
                        half_widths=None,
                        distribution=NoiseDistribution.NORMAL,
                    ),
                    "test",
                )[0]
                for sign in (1, -1)
            ]
    assert 0 < error[0] < 0.2 and error[1] == pytest.approx(1 - error[0])
