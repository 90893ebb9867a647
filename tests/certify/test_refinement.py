"""What gradient descent on the noise gains, and that it never loses."""

from __future__ import annotations

import copy
import dataclasses
import sys
from typing import Any

import pytest
import torch
from certificates import QUICK, Head, batches, certified, problem, trained

from hf_pacgen.certify.splits import train_prior
from hf_pacgen.config import CertificateConfig
from hf_pacgen.maths.distributions import NoiseDistribution


@pytest.mark.parametrize("distribution", list(NoiseDistribution))
def test_refinement_gains_from_a_bad_start(solved, distribution):
    model, data = solved
    bad = CertificateConfig(eta=1e6, draws=400, distribution=distribution, refine_steps=0)
    before = certified(model, data, bad)
    after = certified(model, data, dataclasses.replace(bad, refine_steps=200))
    assert after.refinement is not None and after.refinement["gain"] > 0.01
    assert after.bound < before.bound - 0.01 and before.refinement is None
    assert after.refinement["gain"] == after.refinement["shaped_bound"] - after.refinement["refined_bound"]


def test_refinement_pulls_the_means_to_the_prior(solved):
    model, data = copy.deepcopy(solved[0]), solved[1]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10)  # the same answers, further away
    config = CertificateConfig(eta=0.3, draws=100, prior_scales=[1.0], refine_steps=150, refine_learning_rate=0.1)
    moved, fixed = (certified(model, data, dataclasses.replace(config, refine_mean=move)) for move in (True, False))
    assert moved.kl < 0.8 * fixed.kl and moved.bound < fixed.bound


def test_without_a_word_it_costs_less_than_the_draws(solved):
    model, data = solved
    config = CertificateConfig(eta=300.0, draws=400)
    default, asked = (
        certified(model, data, config),
        certified(model, data, dataclasses.replace(config, refine_steps=100)),
    )
    assert default.refinement is not None and default.refinement == asked.refinement
    assert default.refinement["steps"] == 100 and default.bound == asked.bound
    # where the posterior is the prior there is nothing to gain
    held_out = train_prior(model, data, lambda model, part: None)
    at_prior = certified(model, held_out.certificate_data, config, prior=held_out)
    assert at_prior.refinement is None and at_prior.kl < 1


def test_what_was_trained_too_far_is_met_halfway(solved):
    model, data = copy.deepcopy(solved[0]), solved[1]
    prior = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(20)  # the same answers, and the prior gives them as well
    config = CertificateConfig(eta=300.0, draws=100, refine_steps=1, refine_learning_rate=1e-9)
    moved, fixed = (
        certified(model, data, dataclasses.replace(config, refine_mean=move), prior=prior) for move in (True, False)
    )
    assert moved.kl < 0.8 * fixed.kl and moved.bound < fixed.bound
    assert torch.equal(model.linear.weight, 20 * prior["linear.weight"])


def test_near_a_prior_that_was_trained_it_goes_further(monkeypatch):
    _, features, labels = problem(n=400)
    held_out = train_prior(Head(), batches(features, labels), fit)
    fit(held_out.model, batches(features, labels))
    with torch.no_grad():
        for p in held_out.model.parameters():
            p.mul_(20)  # the same answers, and the prior gives nearly the same
    config = CertificateConfig(draws=100, refine_steps=1, refine_learning_rate=1e-9)
    nearer = certified(held_out.model, held_out.certificate_data, config, prior=held_out)
    search = sys.modules["hf_pacgen.certify.search"]
    monkeypatch.setattr(search, "NEARER", search.HALFWAY)
    monkeypatch.setattr(search, "NARROWER", 1)
    halfway = certified(held_out.model, held_out.certificate_data, config, prior=held_out)
    assert nearer.kl < 0.8 * halfway.kl and nearer.bound < halfway.bound
    assert any("The noise is centered near the prior" in note for note in nearer.notes)


def fit(model: torch.nn.Module, part: list[dict[str, torch.Tensor]]) -> None:
    trained(model, torch.cat([b["features"] for b in part]), torch.cat([b["labels"] for b in part]))


def test_refinement_never_makes_it_worse(solved):
    model, data = solved
    result = certified(model, data, dataclasses.replace(QUICK, refine_steps=3, refine_learning_rate=50.0))
    assert result.refinement == {**(result.refinement or {}), "gain": 0.0}


def test_refinement_with_errors_of_the_users(solved):
    model, data = solved

    def error_fn(model: Any, batch: Any) -> torch.Tensor:
        return (model(batch["features"])["logits"].argmax(-1) != batch["labels"]).float()

    own = certified(model, data, error_fn=error_fn)
    assert dataclasses.replace(own, seconds=0) == dataclasses.replace(certified(model, data), seconds=0)
    bad = CertificateConfig(eta=30.0, draws=100, refine_steps=20)
    assert certified(model, data, bad, error_fn=error_fn).status == "certified"
