"""The exact bound that stands beside a certificate where some data was not seen."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from certificates import QUICK, Head, batches, certified, documents, problem, trained
from scipy.stats import beta
from torch import nn

from hf_pacgen.certify.splits import train_prior
from hf_pacgen.results.certificate import Certificate

HELD_OUT = dataclasses.replace(QUICK, held_out=True)


def split(n: int = 400) -> tuple[Head, list[dict[str, torch.Tensor]]]:
    model, features, labels = problem(n=n)
    return model, batches(features, labels)


def test_the_prior_that_was_trained_no_further_has_never_seen_them() -> None:
    _, data = split()
    held_out = train_prior(Head(), data, lambda model, part: fit(model, part))
    result = certified(held_out.model, held_out.certificate_data, prior=held_out)
    errors = wrong(held_out.model, held_out.certificate_data)
    assert (result.held_out, result.test_set_of, result.test_set_errors, result.n) == (True, "model", errors, 200)
    assert result.test_set_bound == pytest.approx(beta.ppf(0.95, errors + 1, 200 - errors), abs=1e-6)
    assert "of the 200 held-out examples" in result.sentence
    assert f"(the test-set bound: {errors} errors on 200 examples that it never saw)" in result.sentence
    assert "is tighter than PAC-Bayes" in result.comparison and "choose which to quote" in result.comparison


def test_a_posterior_that_was_trained_further_leaves_the_priors_own() -> None:
    _, data = split()
    held_out = train_prior(Head(), data, lambda model, part: fit(model, part))
    before = wrong(held_out.model, held_out.certificate_data)
    fit(held_out.model, data)
    after = {name: p.detach().clone() for name, p in held_out.model.named_parameters()}
    result = certified(held_out.model, held_out.certificate_data, prior=held_out)
    assert (result.held_out, result.test_set_of, result.test_set_errors) == (False, "prior", before)
    assert "of the 200 training examples" in result.sentence and "The prior's model, without noise" in result.sentence
    assert all(torch.equal(p, after[name]) for name, p in held_out.model.named_parameters())


def test_a_word_is_enough_and_without_one_there_is_none() -> None:
    model, data = split()
    plain, said = certified(model, data), certified(model, data, HELD_OUT)
    assert plain.test_set_bound is None and plain.comparison == "" and "training examples, the" in plain.sentence
    assert said.test_set_of == "model" and said.test_set_errors == wrong(model, data) and said.held_out
    assert said.bound == plain.bound


def test_a_complete_prior_is_a_model_too() -> None:
    model, data = split()
    prior = {name: torch.full_like(p, 0.5) for name, p in model.named_parameters()}
    result = certified(model, data, prior=prior)
    ones = sum(int(batch["labels"].sum()) for batch in data)  # equal logits: the first class
    assert (result.test_set_of, result.test_set_errors) == ("prior", ones)


def test_parts_of_errors_are_bounded_by_betting(language_model) -> None:
    result = certified(language_model, documents(), HELD_OUT)
    errors = result.test_set_errors
    assert result.test_set_method == "betting" and errors is not None and errors % 1 != 0
    assert errors / 24 < bound_of(result) <= 1


def test_what_was_seen_does_not_choose_the_bound() -> None:
    model, data = split()

    def wrong_ones(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return (model(**batch)["logits"].argmax(-1) != batch["labels"]).double()

    own, given = certified(model, data, HELD_OUT), certified(model, data, HELD_OUT, error_fn=wrong_ones)
    assert own.test_set_errors == given.test_set_errors and own.test_set_method == "exact (Clopper-Pearson)"
    # errors of one's own may be parts, though these were none
    assert given.test_set_method == "betting" and bound_of(given) > bound_of(own)


def test_the_exact_bound_fails_no_more_often_than_promised() -> None:
    """The model errs on exactly a fifth of new examples: a label is the sign, flipped with probability 0.2."""
    failures, draws, delta = 0, 60, 0.2
    model = Head(1)
    with torch.no_grad():
        model.linear.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.linear.bias.zero_()
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(64, 1, generator=generator)
        y = ((x[:, 0] > 0) ^ (torch.rand(64, generator=generator) < 0.2)).long()
        config = dataclasses.replace(HELD_OUT, draws=1, delta=delta, seed=seed)
        failures += bound_of(certified(model, batches(x, y), config)) < 0.2
    assert 0 < failures <= draws * delta + 2 * (draws * delta * (1 - delta)) ** 0.5


def bound_of(certificate: Certificate) -> float:
    assert certificate.test_set_bound is not None
    return certificate.test_set_bound


def fit(model: nn.Module, part: list[dict[str, torch.Tensor]]) -> None:
    trained(model, torch.cat([b["features"] for b in part]), torch.cat([b["labels"] for b in part]), steps=10)


@torch.no_grad()
def wrong(model: nn.Module, data: list[dict[str, torch.Tensor]]) -> int:
    return sum(int((model(b["features"])["logits"].argmax(-1) != b["labels"]).sum()) for b in data)
