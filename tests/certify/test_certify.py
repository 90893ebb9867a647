"""What a certificate proves, that it leaves the model alone, and that it can be written and read."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from certificates import QUICK, batches, certified, problem
from launch import on_two_processes
from torch import nn

from hf_pacgen.certify.certify import Certificate, certify
from hf_pacgen.certify.draws import planned_passes
from hf_pacgen.certify.posterior import DEFAULT_SCALES
from hf_pacgen.config import CertificateConfig, PriorGroups
from hf_pacgen.maths.certified_bound import Bound
from hf_pacgen.maths.pac_bayes import effective_draws, kl_bound, monte_carlo_bound
from hf_pacgen.show.cards.update import update_model_card


def test_the_bound_is_made_of_the_parts_it_reports(solved):
    model, data = solved
    result = certified(model, data, CertificateConfig(eta=300.0, draws=400, refine_steps=0))
    assert (result.status, result.n, result.unit, result.prior) == ("certified", 400, "example", "zero")
    looks = len(planned_passes(400, [8] * 50))
    # as many draws as examples: a half of δ each; every look has its part, in two for the two bounds of a mean
    assert result.delta_draws == pytest.approx(0.025 / looks, rel=1e-12)
    by_count = monte_carlo_bound(result.empirical_error, result.draws, 0.0125 / looks, one_sided=True).item()
    assert result.empirical_error < result.empirical_bound <= by_count + 1e-12
    paid = kl_bound(result.empirical_bound, result.kl + result.price, 400, 0.025).item()
    assert result.bound == pytest.approx(paid, rel=1e-12)
    assert 0 < result.price <= math.log(len(DEFAULT_SCALES)) and result.prior_scale in DEFAULT_SCALES
    assert result.draws == effective_draws([8] * 50) * result.draws / 50 and result.draws <= 400
    part = result.by_module["linear"]
    assert part == {
        "kl": pytest.approx(result.kl),
        "kl_share": pytest.approx(1.0),
        "num_parameters": 12,
        "prior_scale": result.prior_scale,
    }
    assert 0.05 < result.empirical_error < result.bound < 0.35  # the signal's own noise errs on 6 %


@pytest.mark.parametrize("settings", [{}, {"refine_steps": 30}, {"distribution": "uniform"}, {"bound": "hoeffding"}])
def test_pure_noise_is_never_certified(settings):
    """Labels are fair coins, so every classifier errs on exactly half of new examples, however well it fits these."""
    config = CertificateConfig(eta=500.0, draws=50, delta=0.2, **settings)
    failures = 0
    for seed in range(12):
        model, features, labels = problem(n=40, size=30, seed=seed, random_labels=True)
        assert (model(features)["logits"].argmax(-1) != labels).float().mean() < 0.1
        failures += certified(model, batches(features, labels), config).bound < 0.5
    assert failures == 0  # δ = 0.2 would allow 2; the bound is far from failing


def test_a_prior_that_saw_the_data_would_certify_pure_noise():
    """What the refusals prevent: with them waived, the test above fails."""
    model, features, labels = problem(n=40, size=30, random_labels=True)
    waived = dataclasses.replace(QUICK, assume_independent=True)
    assert certified(model, batches(features, labels), waived, prior=copy.deepcopy(model)).bound < 0.45


def test_more_data_and_a_larger_delta_help():
    model, features, labels = problem(n=800)
    few, many = (certified(model, batches(features[:n], labels[:n])) for n in (200, 800))
    strict = certified(model, batches(features, labels), dataclasses.replace(QUICK, delta=0.001))
    assert many.bound < few.bound and many.bound < strict.bound


def test_vacuous_says_so_and_returns():
    model, features, labels = problem(n=6)
    result = certified(model, batches(features, labels), dataclasses.replace(QUICK, bound=Bound.HOEFFDING))
    assert (result.status, result.bound) == ("vacuous", 1.0) and "vacuous" in result.sentence


def test_the_sentence_rounds_against_us(solved):
    result = certified(*solved)
    sentence = (
        "With probability ≥ 95 % over the draw of the 12,000 training examples, the noisy classifier errs on at most"
    )
    assert dataclasses.replace(result, n=12_000, bound=0.26301).sentence == f"{sentence} 26.4 % of new ones."
    assert dataclasses.replace(result, n=12_000, bound=0.25).sentence == f"{sentence} 25 % of new ones."
    assert "≥ 96.5 %" in dataclasses.replace(result, delta=0.035).sentence
    assert "≥ 99.99 %" in dataclasses.replace(result, delta=0.00001).sentence


def test_the_model_is_left_as_found(solved):
    model, data = copy.deepcopy(solved[0]), solved[1]
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    model.linear.bias.grad = torch.ones(2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    state = torch.get_rng_state()
    config = CertificateConfig(eta=300.0, draws=100, parameters=["linear"], refine_steps=5)
    with pytest.warns(UserWarning, match="'unused', are not certified and not in the prior"):
        certified(model, data, config)
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in model.named_parameters())
    assert torch.equal(model.linear.bias.grad, torch.ones(2)) and model.linear.weight.grad is None

    def fails_later(model: nn.Module, batch: Any) -> torch.Tensor:
        raise RuntimeError("in the middle of a draw")

    with pytest.raises(RuntimeError, match="in the middle"):
        certified(model, data, dataclasses.replace(config, parameters=None), error_fn=fails_later)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_same_seed_same_certificate(solved):
    first, second, other = (
        certified(solved[0], solved[1], dataclasses.replace(QUICK, seed=seed)) for seed in (1, 1, 2)
    )
    assert dataclasses.replace(first, seconds=0) == dataclasses.replace(second, seconds=0)
    assert first.empirical_error != other.empirical_error


def test_written_and_read(tmp_path: Path, solved):
    result = certified(
        solved[0], solved[1], dataclasses.replace(QUICK, prior_groups=PriorGroups.MODULE, refine_steps=2)
    )
    result.save(tmp_path / "certificate.json")
    assert Certificate.load(tmp_path / "certificate.json") == result
    written = json.loads((tmp_path / "certificate.json").read_text())
    assert written["sentence"] == result.sentence and CertificateConfig.from_dict(written["config"]).eta == 300.0
    card = update_model_card(tmp_path, certificate=result)
    assert "training examples, the noisy classifier errs on at most" in str(card)
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist. Make it first"):
        result.save(tmp_path / "missing" / "certificate.json")
    (tmp_path / "text.json").write_text("no json")
    with pytest.raises(ValueError, match="is not JSON"):
        Certificate.load(tmp_path / "text.json")
    with pytest.raises(ValueError, match="This is no certificate of hf_pacgen"):
        Certificate.from_dict({})
    with pytest.raises(ValueError, match="has version 99; this release reads version 1"):
        Certificate.from_dict({**written, "version": 99})
    with pytest.raises(ValueError, match=r"missing \['bound'\], unknown \['extra'\]"):
        Certificate.from_dict({**{k: v for k, v in written.items() if k != "bound"}, "extra": 1})


def _two_processes(path: str) -> None:
    from accelerate import Accelerator

    model, features, labels = problem(n=100)
    config = CertificateConfig(eta=300.0, draws=30, refine_steps=0)
    result = certify(
        model, batches(features, labels), prior="zero", config=config, accelerator=Accelerator(cpu=True), progress=False
    )
    rank = torch.distributed.get_rank()
    result.save(f"{path}/{rank}.json")


def test_two_processes_certify_what_one_does(tmp_path: Path):
    on_two_processes(_two_processes, str(tmp_path))
    model, features, labels = problem(n=100)
    alone = certified(model, batches(features, labels), CertificateConfig(eta=300.0, draws=30, refine_steps=0))
    for rank in range(2):
        result = Certificate.load(tmp_path / f"{rank}.json")
        assert (result.n, result.draws) == (100, alone.draws)
        assert result.empirical_error == pytest.approx(alone.empirical_error, abs=1e-9)
        assert result.bound == pytest.approx(alone.bound, rel=1e-5)
