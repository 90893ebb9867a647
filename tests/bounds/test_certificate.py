"""Certificates: what they prove, what they refuse, and that they leave the model alone."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import saved_models
import torch
from launch import on_two_processes
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional
from torch.utils.data import DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, GPT2LMHeadModel

from hf_pacgen.certify import draws
from hf_pacgen.certify.certify import Certificate, certify
from hf_pacgen.certify.draws import NoiseStream, planned_passes
from hf_pacgen.certify.error_rate import ErrorRate
from hf_pacgen.certify.posterior import DEFAULT_SCALES, Posterior, PriorScales, shaped_posterior
from hf_pacgen.certify.splits import fingerprint, train_prior
from hf_pacgen.config import CertificateConfig, Estimator, PriorGroups, ScoreConfig
from hf_pacgen.curvature.displacement import SavedWeights
from hf_pacgen.maths.certified_bound import Bound
from hf_pacgen.maths.distributions import NoiseDistribution
from hf_pacgen.maths.pac_bayes import effective_draws, kl_bound, monte_carlo_bound
from hf_pacgen.measures.session import measuring
from hf_pacgen.show.cards.update import update_model_card

QUICK = CertificateConfig(eta=300.0, draws=100)


class Head(nn.Module):
    """A linear classifier as transformers would write it."""

    def __init__(self, size: int = 5, classes: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(size, classes)

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.linear(features)
        return {"logits": logits} | ({} if labels is None else {"loss": functional.cross_entropy(logits, labels)})


def problem(
    n: int = 400, size: int = 5, seed: int = 0, *, random_labels: bool = False
) -> tuple[Head, torch.Tensor, torch.Tensor]:
    """A trained head with its examples: the label is the sign of the first feature, or a fair coin."""
    torch.manual_seed(seed)
    features = torch.randn(n, size)
    labels = torch.randint(0, 2, (n,)) if random_labels else (features[:, 0] + 0.2 * torch.randn(n) > 0).long()
    return trained(Head(size), features, labels), features, labels


def trained(model: Head, features: torch.Tensor, labels: torch.Tensor, steps: int = 40) -> Head:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(features, labels)["loss"].backward()
        optimizer.step()
    return model.eval()


def batches(features: torch.Tensor, labels: torch.Tensor, size: int = 8) -> list[dict[str, torch.Tensor]]:
    return [{"features": features[i : i + size], "labels": labels[i : i + size]} for i in range(0, len(labels), size)]


def certified(model: nn.Module, data: Any, config: CertificateConfig = QUICK, **kwargs: Any) -> Certificate:
    return certify(model, data, config=config, **{"prior": "zero", "progress": False, **kwargs})


@pytest.fixture(scope="module")
def solved() -> tuple[Head, list[dict[str, torch.Tensor]]]:
    model, features, labels = problem()
    return model, batches(features, labels)


# --- what is proved -------------------------------------------------------------------------------------------


def test_the_bound_is_made_of_the_parts_it_reports(solved):
    model, data = solved
    result = certified(model, data, CertificateConfig(eta=300.0, draws=400))
    assert (result.status, result.n, result.unit, result.prior) == ("certified", 400, "example", "zero")
    looks = len(planned_passes(400, [8] * 50))
    assert result.empirical_bound == pytest.approx(
        monte_carlo_bound(result.empirical_error, result.draws, 0.025 / looks, one_sided=True).item(), rel=1e-12
    )
    paid = 0.025 / len(DEFAULT_SCALES)
    assert result.bound == pytest.approx(kl_bound(result.empirical_bound, result.kl, 400, paid).item(), rel=1e-12)
    assert result.price == pytest.approx(math.log(len(DEFAULT_SCALES))) and result.prior_scale in DEFAULT_SCALES
    assert result.draws == effective_draws([8] * 50) * result.draws / 50 and result.draws <= 400
    part = result.by_module["linear"]
    assert part == {
        "kl": pytest.approx(result.kl),
        "kl_share": pytest.approx(1.0),
        "num_parameters": 12,
        "prior_scale": result.prior_scale,
    }
    assert 0.05 < result.empirical_error < result.bound < 0.35  # the signal's own noise errs on 6 %


def test_the_noisy_error_is_that_of_the_posterior():
    """Against the closed form: a difference of two noisy logits is normal, so P(wrong) is a normal tail."""
    model, features, labels = problem(n=64)
    data = batches(features, labels, size=1)
    result = certified(model, data, CertificateConfig(eta=300.0, draws=40_000, estimator=Estimator.EXACT))
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


def exact_curvature(model: Head, features: torch.Tensor) -> dict[str, torch.Tensor]:
    p = model(features)["logits"].softmax(-1).detach()
    spread = p * (1 - p)
    return {
        "linear.weight": (spread.T @ features.square()) / len(features),
        "linear.bias": spread.mean(0),
    }


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
    assert fit.price == pytest.approx(len(members) * math.log(4))


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


# --- the draws ------------------------------------------------------------------------------------------------


def test_every_batch_has_its_own_draw_and_ragged_batches_count_less():
    model, features, labels = problem(n=50)
    result = certified(model, batches(features, labels), CertificateConfig(eta=300.0, draws=1))
    assert result.n == 50 and result.draws == 50 / 8
    assert planned_passes(1, [8, 8, 2]) == [1] and planned_passes(10_000, [8] * 1500) == [1, 2, 4, 7]


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


def test_large_data_is_not_kept_in_memory(solved, monkeypatch):
    kept = certified(*solved)
    monkeypatch.setattr(draws, "CACHE_BYTES", 1000)
    assert dataclasses.replace(certified(*solved), seconds=kept.seconds) == kept
    assert certified(solved[0], solved[1], dataclasses.replace(QUICK, refine_steps=2)).refinement is not None


def test_draws_stop_when_they_hardly_matter(solved):
    model, data = solved
    short = certified(model, data, CertificateConfig(eta=300.0, draws=10**5))
    correction, gap = short.empirical_bound - short.empirical_error, short.bound - short.empirical_bound
    assert short.draws < 10**5 / 2 and correction <= 0.1 * gap


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
    with measuring(model, data, ScoreConfig(), None, None, 8, None) as objective:
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


# --- shape and refinement -------------------------------------------------------------------------------------


def test_shaped_noise_is_laplace(solved):
    means, curvature = {"w": torch.tensor([1.0, -2.0, 0.5])}, {"w": torch.tensor([4.0, 0.0, -3.0])}
    prior = PriorScales({}, {"w": "all"}, [1.5])
    scale = shaped_posterior(means, curvature, prior, eta=10.0, distribution=NoiseDistribution.NORMAL).scales["w"]
    assert torch.allclose(scale, torch.tensor([(40 + 1.5**-2) ** -0.5, 1.5, 1.5]))
    uniform = shaped_posterior(means, curvature, prior, eta=10.0, distribution=NoiseDistribution.UNIFORM)
    box = torch.tensor([0.2, 0.3, 0.15])
    assert torch.allclose(uniform.scales["w"], (3**0.5 * scale).minimum(box))


def test_the_search_finds_a_better_temperature(solved):
    model, data = solved
    found = certified(model, data, CertificateConfig(draws=100))
    for eta in (3.0, 1e6, "n"):
        fixed = dataclasses.replace(QUICK, eta=eta)  # type: ignore[arg-type]
        assert found.bound <= certified(model, data, fixed).bound + (0.01 if eta == "n" else 0)


@pytest.mark.parametrize("distribution", list(NoiseDistribution))
def test_refinement_gains_from_a_bad_start(solved, distribution):
    model, data = solved
    bad = CertificateConfig(eta=1e6, draws=400, distribution=distribution)
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


# --- priors ---------------------------------------------------------------------------------------------------


def test_initial_weights_are_a_prior():
    torch.manual_seed(0)
    features = torch.randn(400, 5)
    labels = (features[:, 0] > 0).long()
    model = Head()
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    reference = copy.deepcopy(model)
    trained(model, features, labels, steps=5)
    data = batches(features, labels)
    by_name, by_model = certified(model, data, prior=initial), certified(model, data, prior=reference)
    assert by_name.prior == "initial weights" and by_name.kl == by_model.kl
    far = {name: p + 5 for name, p in initial.items()}
    assert certified(model, data, prior=far).kl > by_name.kl


def test_a_prior_trained_on_a_part_certifies_the_other():
    _, features, labels = problem(n=600)
    dataset = TensorDataset(features, labels)

    def loss_fn(model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        return functional.cross_entropy(model.linear(batch[0]), batch[1], reduction="sum"), len(batch[1])

    def error_fn(model: Any, batch: Any) -> torch.Tensor:
        return (model.linear(batch[0]).argmax(-1) != batch[1]).double()

    def train(model: nn.Module, data: Any) -> None:
        rows = [data[i] for i in range(len(data))]
        trained(model, torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows]))  # type: ignore[arg-type]

    torch.manual_seed(0)
    untrained = Head()
    before = copy.deepcopy(untrained.state_dict())
    held_out = train_prior(untrained, dataset, train, prior_data_fraction=0.5)
    assert all(torch.equal(value, before[name]) for name, value in untrained.state_dict().items())
    assert len(held_out.prior_data) == len(held_out.certificate_data) == 300
    kinds: dict[str, Any] = {"loss_fn": loss_fn, "error_fn": error_fn}
    many = CertificateConfig(draws=2000)
    result = certified(held_out.model, held_out.certificate_data, many, prior=held_out, **kinds)
    assert result.n == 300 and "300 examples held out" in result.prior and result.kl < 1
    assert result.bound < certified(held_out.model, dataset, many, **kinds).bound - 0.02
    for data in (dataset, held_out.prior_data, DataLoader(held_out.prior_data, batch_size=4)):
        with pytest.raises(ValueError, match="The prior was trained on 300 of these examples"):
            certified(held_out.model, data, prior=held_out, **kinds)
    certified(held_out.model, DataLoader(held_out.certificate_data, batch_size=8), prior=held_out, **kinds)


def test_splitting_lists_of_batches_and_equal_examples():
    model, features, labels = problem(n=80)
    data = batches(features, labels)
    held_out = train_prior(model, data, lambda model, data: None, prior_data_fraction=0.25, seed=1)
    assert (len(held_out.prior_data), len(held_out.certificate_data)) == (2, 8)  # 10 batches: 2.5 rounds to even
    assert certified(model, held_out.certificate_data, prior=held_out).n == 64
    with pytest.raises(ValueError, match="trained on 16 of these examples"):
        certified(model, data, prior=held_out)
    # an example that is in both parts may be certified on, once
    twice = TensorDataset(torch.cat([features, features]), torch.cat([labels, labels]))
    both = train_prior(model, twice, lambda model, data: None)
    prints = [fingerprint(both.certificate_data[i]) for i in range(80)]
    assert both.count_used(prints) == 0 and both.count_used([*prints, prints[0]]) <= 1
    assert both.count_used(fingerprint(twice[i]) for i in range(160)) > 0


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"prior_data_fraction": 1.0}, ValueError, r"prior_data_fraction must be in \(0, 1\).*got 1.0"),
        ({"data": [1], "prior_data_fraction": 0.5}, ValueError, "leaves one part empty"),
        ({"data": iter([1, 2])}, TypeError, "data must be a dataset with indices.*got list_iterator"),
        ({"data": DataLoader(TensorDataset(torch.ones(2)))}, TypeError, "got DataLoader. Split the dataset"),
    ],
)
def test_splits_refuse(arguments, error, match):
    with pytest.raises(error, match=match):
        train_prior(nn.Linear(1, 1), **{"data": [1, 2, 3, 4], "train": lambda *_: None, **arguments})


def test_fingerprints_see_content_only():
    row = {"label": 1, "input_ids": [5, 6, 7], "unused": None}
    padded = {
        "input_ids": torch.tensor([5, 6, 7, 0]),
        "attention_mask": torch.tensor([1, 1, 1, 0]),
        "token_type_ids": torch.zeros(4, dtype=torch.long),
        "labels": torch.tensor(1),
    }
    assert fingerprint(row) == fingerprint(padded)
    for other in ({**row, "label": 0}, {**row, "input_ids": [5, 6]}, {**row, "text": "more"}):
        assert fingerprint(other) != fingerprint(row)
    assert fingerprint((torch.tensor([0.1]), 1)) == fingerprint({"x": [0.1], "y": 1})


def wrong_priors(model: Head) -> dict[str, tuple[Any, type[Exception], str]]:
    weights = {name: p.detach().clone() + 1 for name, p in model.named_parameters()}
    nan = {**weights, "linear.bias": torch.tensor([0.0, math.nan])}
    return {
        "word": (
            "initial",
            ValueError,
            "prior 'initial' is neither 'zero' nor a folder.*the initial weights themselves",
        ),
        "kind": (3, TypeError, "prior must be 'zero'.*got int"),
        "itself": (model, ValueError, "The prior is the trained model itself"),
        "copy": (copy.deepcopy(model), ValueError, "equals the trained weights, so it depends on the data"),
        "shared": (model.state_dict(), ValueError, "'linear.weight' shares its memory with the trained model"),
        "names": ({"other": torch.ones(2)}, ValueError, "lacks weights that are to be certified: 'linear.weight'"),
        "more names": ({**weights, "x": torch.ones(1)}, ValueError, "has weights that the model lacks: 'x'"),
        "shape": (Head(4), ValueError, r"'linear.weight' must have shape \(2, 5\), like the model's; got \(2, 4\)"),
        "nan": (nan, ValueError, "'linear.bias' contains NaN or infinity"),
        "empty": ({}, ValueError, "A prior by name must hold tensors; it is empty"),
    }


@pytest.mark.parametrize("case", list(wrong_priors(Head())))
def test_wrong_priors_are_refused(solved, case):
    prior, error, match = wrong_priors(solved[0])[case]
    with pytest.raises(error, match=match):
        certified(*solved, prior=prior)


def test_what_is_not_certified_must_be_as_the_prior_has_it(solved):
    model, data = solved
    initial = {"linear.weight": torch.zeros(2, 5), "linear.bias": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"The weights 'linear.bias' are not certified, and differ from the prior's"):
        certified(model, data, dataclasses.replace(QUICK, parameters=["*.weight"]), prior=initial)
    initial["linear.bias"] = model.linear.bias.detach().clone()
    result = certified(model, data, dataclasses.replace(QUICK, parameters=["*.weight"]), prior=initial)
    assert result.num_parameters == 10 and result.notes == ()


def test_folders_as_priors(tmp_path, solved):
    saved_models.bert(tmp_path / "base", head=False)
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    tokens = torch.randint(4, 16, (40, 6))
    data = [{"input_ids": tokens[i : i + 4], "labels": tokens[i : i + 4, 0] % 2} for i in range(0, 40, 4)]
    result = certified(model, data, prior=tmp_path / "base")
    assert result.prior == "pretrained weights of base"
    assert any("lacks the certified weights 'classifier.weight', 'classifier.bias'" in note for note in result.notes)
    assert result.kl < certified(model, data).kl  # 0 is further away
    with pytest.raises(ValueError, match=r"has none of the model's weights|has no weights"):
        certified(*solved, prior=tmp_path / "base")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no weights: expected model\.safetensors or pytorch_model.bin"):
        certified(*solved, prior=tmp_path / "empty")
    torch.save({"linear.weight": torch.zeros(2, 5), "linear.bias": torch.ones(2)}, tmp_path / "empty/pytorch_model.bin")
    assert certified(*solved, prior=tmp_path / "empty").status == "certified"
    saved_models.bert(tmp_path / "three", num_labels=3)
    with pytest.raises(
        ValueError, match=r"'classifier.bias' must have shape \(2,\), like the model's; three has \(3,\)"
    ):
        certified(model, data, prior=tmp_path / "three")


def test_adapters_are_certified_alone(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    base = AutoModelForSequenceClassification.from_pretrained(saved_models.bert(tmp_path / "base"))
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=2)).eval()
    initial = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.01 * torch.randn_like(p))
    tokens = torch.randint(4, 16, (40, 6))
    data = [{"input_ids": tokens[i : i + 4], "labels": tokens[i : i + 4, 0] % 2} for i in range(0, 40, 4)]
    result = certified(model, data, prior=initial)
    assert result.num_parameters == sum(p.numel() for p in initial.values())
    assert any("lora_B" in name for name in result.by_module)
    folder = certified(model, data, prior=tmp_path / "base")
    assert any("lora_A" in note and "centered on 0" in note for note in folder.notes)


# --- what is refused ------------------------------------------------------------------------------------------


class Normalized(Head):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5, **settings)

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return super().forward(self.norm(features), labels)


def test_batch_norm(solved):
    _, data = solved
    with pytest.raises(ValueError, match="The batch-norm 'norm' is in train mode"):
        certified(Normalized(), data)
    with pytest.raises(ValueError, match="The batch-norm 'norm' is without running statistics"):
        certified(Normalized(track_running_stats=False).eval(), data)
    model = Normalized()
    initial = copy.deepcopy(model)
    model(data[0]["features"])
    with pytest.raises(
        ValueError, match=r"The statistics \(a buffer\) 'norm.running_mean' are not certified, and differ"
    ):
        certified(model.eval(), data, prior=initial)
    with pytest.warns(UserWarning, match="does not hold the batch-norm statistics of 'norm'"):
        certified(model.eval(), data)


def test_examples_must_be_independent(solved):
    model, data = solved
    with pytest.raises(ValueError, match="400 of the 800 examples equal an earlier one"):
        certified(model, [*data, *data])
    few = certified(model, [*data, data[0]])
    assert few.n == 408 and few.notes == ("8 of the examples equal an earlier one; they count as drawn independently.",)
    vouched = dataclasses.replace(QUICK, assume_independent=True)
    assert certified(model, [*data, *data], vouched).n == 800
    rows: Any = [{"features": x, "labels": y} for batch in data for x, y in zip(*batch.values(), strict=True)]
    for sampler in (RandomSampler(rows, replacement=True), WeightedRandomSampler([1.0] * 400, 400)):
        with pytest.raises(ValueError, match="draws examples with replacement or by weights"):
            certified(model, DataLoader(rows, batch_size=8, sampler=sampler))
    assert certified(model, DataLoader(rows, batch_size=8, shuffle=True)).n == 400


@pytest.mark.parametrize(
    ("errors", "match"),
    [
        (lambda n: torch.full((n,), 2.0), r"must return errors in \[0, 1\]; batch 0 has 2"),
        (lambda n: torch.full((n,), -0.1), r"must return errors in \[0, 1\]; batch 0 has -0.1"),
        (lambda n: torch.full((n,), math.nan), r"must return errors in \[0, 1\]; batch 0 has nan"),
        (lambda n: torch.zeros(()), r"expected shape \(8,\) for batch 0, got \(\)"),
        (lambda n: torch.zeros(n * 4), r"expected shape \(8,\) for batch 0, got \(32,\). Tokens of a document depend"),
        (lambda n: 0.5, "must return a tensor with one error for each example; got float"),
    ],
)
def test_errors_must_be_one_for_each_example_in_0_1(solved, errors, match):
    with pytest.raises(ValueError, match=match):
        certified(*solved, error_fn=lambda model, batch: errors(len(batch["labels"])))


def test_errors_that_cannot_be_defined(solved):
    model, data = solved

    def loss_fn(model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        return functional.mse_loss(model.linear(batch["features"]), batch["labels"], reduction="sum"), 8

    targets = [{**batch, "labels": torch.randn(8, 2)} for batch in data]
    with pytest.raises(ValueError, match=r"Batch 0 has no 0-1 error: expected logits .* got \(8, 2\) and \(8, 2\)"):
        certified(
            model,
            [{**b, "labels": b["labels"]} for b in targets],
            loss_fn=lambda m, b: (m(b["features"])["logits"].sum(), 8),
            error_fn=None,
        )
    pairs = [(batch["features"], batch["labels"]) for batch in data]
    with pytest.raises(ValueError, match="needs batches that are dicts with labels; got tuple"):
        certified(
            model, pairs, loss_fn=lambda m, b: (functional.cross_entropy(m.linear(b[0]), b[1], reduction="sum"), 8)
        )
    ignored = [{**batch, "labels": batch["labels"].clone()} for batch in data]
    ignored[3]["labels"][2] = -100
    with pytest.raises(ValueError, match="Batch 3 has an example without a label"):
        certified(model, ignored)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(saved_models.gpt2(tmp_path_factory.mktemp("gpt2") / "model")).eval()


def documents(count: int = 24, length: int = 9) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(4, 16, (count, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": tokens[i : i + 4], "labels": tokens[i : i + 4].clone()} for i in range(0, count, 4)]


def test_the_units_of_a_language_model_are_documents(language_model):
    data = documents()
    result = certified(language_model, data, dataclasses.replace(QUICK, eta=1e9))
    assert (result.n, result.unit) == (24, "document")
    assert "nothing is proved" in result.sentence
    assert "of the labels of a new one" in dataclasses.replace(result, status="certified", bound=0.5).sentence
    tokens = torch.cat([batch["input_ids"] for batch in data])
    wrong = (language_model(tokens).logits[:, :-1].argmax(-1) != tokens[:, 1:]).double().mean()
    assert result.empirical_error == pytest.approx(wrong.item(), abs=0.02)  # hardly any noise at that η

    packed = [{**data[0], "position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]] * 4)}, *data[1:]]
    ended = [{k: v.clone() for k, v in batch.items()} for batch in data]
    ended[2]["input_ids"][1, 4] = language_model.config.eos_token_id
    for rows in (packed, ended):
        with pytest.raises(ValueError, match="rows of several documents"):
            certified(language_model, rows)
    ended[2]["input_ids"][1] = torch.tensor([0, 0, 5, 6, 7, 8, 0, 0, 0])  # at both ends is where it belongs
    assert certified(language_model, ended).n == 24
    assert certified(language_model, packed, dataclasses.replace(QUICK, assume_independent=True)).n == 24
    with pytest.raises(ValueError, match=r"expected shape \(4,\) for batch 0, got \(32,\). Tokens of a document"):
        certified(language_model, data, error_fn=lambda m, b: torch.zeros(b["labels"][:, 1:].numel()))


def test_rows_of_one_length_may_be_pieces(language_model):
    model = copy.deepcopy(language_model)
    model.config.n_positions = 64
    model.transformer.wpe = nn.Embedding(64, 16)
    data = [{**batch, "attention_mask": torch.ones(4, 64)} for batch in documents(length=64)]
    with pytest.warns(UserWarning, match="All rows have exactly 64 tokens: if they are pieces of longer documents"):
        assert len(certified(model, data).notes) == 1
    data[0]["attention_mask"][0, -1] = 0
    assert certified(model, data).notes == ()


def test_a_document_counts_once_whatever_its_length(language_model):
    """Errors are averaged over documents, not over their tokens."""
    data = documents()
    for batch in data:
        batch["labels"][0, 2:] = -100
    result = certified(language_model, data, dataclasses.replace(QUICK, eta=1e9))
    errors = []
    for batch in data:
        logits = language_model(batch["input_ids"]).logits[:, :-1].argmax(-1)
        labels = batch["labels"][:, 1:]
        errors += [(a[b != -100] != b[b != -100]).double().mean().item() for a, b in zip(logits, labels, strict=True)]
    assert result.empirical_error == pytest.approx(sum(errors) / 24, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"delta": 1.0}, "delta must be less than 1"),
        ({"delta": 0.0}, "delta must be a finite number greater than 0"),
        ({"draws": 0}, "draws must be an integer of at least 1; got 0"),
        ({"bound": "tight"}, "bound must be one of 'kl', 'hoeffding'"),
        ({"distribution": "cauchy"}, "distribution must be one of 'uniform'"),
        ({"prior_groups": "row"}, "prior_groups must be one of 'model', 'kind', 'module'; got 'row'"),
        ({"prior_scales": []}, "prior_scales must be a list of positive, finite numbers"),
        ({"prior_scales": ["a"]}, "prior_scales must be a list of positive, finite numbers"),
        ({"prior_scales": [0.1, -1.0]}, "prior_scales must be a list of positive, finite numbers"),
        ({"etas": [1.0]}, "The kl bound has no eta to search"),
        ({"eta": 0.0}, "eta must be a positive number, or 'n'"),
        ({"refine_steps": -1}, "refine_steps must be an integer of at least 0"),
        ({"max_examples": 0}, "max_examples must be an integer of at least 1"),
        ({"parameters": []}, r"parameters must be patterns of parameter names; got \[\]"),
        ({"distribution": "uniform", "epsilon": 0.0}, "epsilon is 0, so weights of 0 have no noise"),
    ],
)
def test_settings_refuse(settings, match):
    with pytest.raises(ValueError, match=match):
        CertificateConfig(**settings)


def test_parameters_must_exist(solved):
    model, data = solved
    with pytest.raises(
        ValueError, match=r"parameters='head' matches no trainable parameter; there are 'linear.weight'"
    ):
        certified(model, data, dataclasses.replace(QUICK, parameters=["linear", "head"]))
    with pytest.raises(ValueError, match="Head has no trainable parameters to certify"):
        certified(copy.deepcopy(model).requires_grad_(False), data)


# --- the record -----------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="is not a JSON file"):
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
    alone = certified(model, batches(features, labels), CertificateConfig(eta=300.0, draws=30))
    for rank in range(2):
        result = Certificate.load(tmp_path / f"{rank}.json")
        assert (result.n, result.draws) == (100, alone.draws)
        assert result.empirical_error == pytest.approx(alone.empirical_error, abs=1e-9)
        assert result.bound == pytest.approx(alone.bound, rel=1e-5)
