"""Estimates of the Hessian diagonal against dense float64 oracles, and the equivalences that pooling promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from hf_pacgen import ScoreConfig, hessian_diagonal, pacgen
from hf_pacgen.config import Estimator
from hf_pacgen.curvature.diagonal.blend import blend_share
from hf_pacgen.curvature.diagonal.sums import DiagonalSums
from hf_pacgen.curvature.displacement import RademacherDirection
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.objective import Objective


def estimate(model: nn.Module, data: Any, **settings: Any) -> Any:
    keywords = {k: settings.pop(k) for k in ("loss_fn", "batch_size") if k in settings}
    return hessian_diagonal(model, data, config=ScoreConfig(**settings), progress=False, **keywords)


def gauss_newton(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """diag Σ_n Jᵀ (diag p - p pᵀ) J / N by brute force: the expectation over all labels of squared gradients."""
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    named = {n: p.detach() for n, p in model.named_parameters()}

    def log_probabilities(vector: Tensor) -> Tensor:
        return torch.func.functional_call(model, tiny.unflat(vector, model), kwargs=inputs).logits.log_softmax(-1)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        scores = torch.func.jacrev(log_probabilities)(tiny.flat(named))
    weights = log_probabilities(tiny.flat(named)).exp()
    return (weights[..., None] * scores.square()).sum(1).mean(0).detach()


@pytest.mark.parametrize("name", list(tiny.MODELS))
def test_exact_is_the_dense_diagonal(name: str) -> None:
    model, batch = tiny.make(name), tiny.examples(name, 4)
    dense = tiny.dense_hessian(model, batch).diagonal()
    result = estimate(model, tiny.split(batch, 1, 3), estimator="exact", standard_error=True)
    assert tiny.relative_error(tiny.flat(result.values), dense) < 1e-6
    assert result.trace == pytest.approx(dense.sum().item(), rel=1e-5)
    assert result.stderr is not None and not tiny.flat(result.stderr).any()


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_hutchinson_converges_and_its_standard_errors_are_right(name: str) -> None:
    model, batch = tiny.make(name), tiny.examples(name, 6)
    dense = tiny.dense_hessian(model, batch).diagonal()
    few = estimate(model, [batch], estimator="hutchinson", passes=24, standard_error=True)
    many = estimate(model, [batch], estimator="hutchinson", passes=384)
    errors = [tiny.relative_error(tiny.flat(r.values), dense) for r in (few, many)]
    assert 2.5 < errors[0] / errors[1] < 6.5  # 4 expected
    stderr = tiny.flat(few.stderr)
    off = (tiny.flat(few.values) - dense)[stderr > 0] / stderr[stderr > 0]
    assert 0.85 < off.square().mean().sqrt() < 1.2
    assert abs(many.trace - dense.sum().item()) < 4 * many.trace_stderr


def space(weights: Tensor) -> WeightSpace:
    """That of a model with a single weight, w."""
    model = nn.Module()
    model.w = nn.Parameter(weights)
    return WeightSpace(Objective(model, Batches([weights], model=model), loss_fn=lambda model, batch: (batch.sum(), 1)))


def test_the_variance_of_a_weighted_mean() -> None:
    # two equal batches: the variance of their mean is (d1 - d2)²/4; unequal ones: reliability weights
    torch.manual_seed(0)
    first, second = torch.randn(2, 5, dtype=torch.float64)
    signs = RademacherDirection(0)
    z = signs.piece("w", 0, first)
    for units in ((3.0, 3.0), (1.0, 4.0)):
        sums = DiagonalSums(space(first), elementwise=True)
        for group, (values, count) in enumerate(zip((first, second), units, strict=True)):
            sums.add_probe(group, {"w": values * count * z}, signs, count, {})
        weights = torch.tensor(units, dtype=torch.float64) / sum(units)
        mean = weights[0] * first + weights[1] * second
        torch.testing.assert_close(sums.mean_()["w"], mean)
        spread = weights[0] * (first - mean).square() + weights[1] * (second - mean).square()
        share = float(weights.square().sum())
        expected = spread * share / (1 - share)
        total = sums.mean_variance(mean.square().sum()[None])
        assert total is not None and total.item() == pytest.approx(expected.sum().item())
        stderr = sums.elementwise_stderr_()
        assert stderr is not None
        torch.testing.assert_close(stderr["w"], expected.sqrt())


def test_every_batch_has_its_own_probe_so_the_error_falls_with_their_number() -> None:
    model, batch = tiny.make("bert"), tiny.examples("bert", 2)
    dense = tiny.dense_hessian(model, batch).diagonal()

    def error(parts: list[dict[str, Tensor]]) -> float:
        runs = [tiny.flat(estimate(model, parts, estimator="hutchinson", seed=s, passes=1).values) for s in range(24)]
        return torch.stack([(run - dense).norm() for run in runs]).square().mean().sqrt().item()

    copies = [batch] * 16  # the same Hessian, sixteen probes
    assert 3.2 < error([batch]) / error(copies) < 5.0  # 4 expected


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_gauss_newton_has_the_right_expectation(name: str) -> None:
    model, batch = tiny.make(name), tiny.examples(name, 5)
    reference = gauss_newton(model, batch)
    result = estimate(model, tiny.split(batch, 2, 3), estimator="gauss_newton", passes=300)
    assert tiny.relative_error(tiny.flat(result.values), reference) < 0.13
    # how far it is from the Hessian's nobody knows, so there is no error to give
    assert result.trace == pytest.approx(reference.sum().item(), rel=0.1) and result.trace_stderr is None
    assert "those of the Gauss-Newton matrix" in result.notes[0]
    assert result.num_hvps == 0 and result.num_gradients == 600


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_blend_is_near_the_better_of_its_parts_and_converges(name: str) -> None:
    model, parts = tiny.make(name), tiny.split(tiny.examples(name, 16), *[2] * 8)
    dense = tiny.dense_hessian(model, tiny.examples(name, 16)).diagonal()

    def error(estimator: str, passes: int, seeds: int = 5) -> float:
        settings = {"estimator": estimator, "passes": passes}
        runs = [tiny.flat(estimate(model, parts, **settings, seed=s).values) for s in range(seeds)]
        return torch.stack([(run - dense).norm() for run in runs]).median().item() / dense.norm().item()

    quiet = error("gauss_newton", 1)
    for passes in (1, 6):
        assert error("blend", passes) < 1.15 * min(quiet, error("hutchinson", passes))
    assert error("blend", 64, seeds=1) < 0.75 * quiet


def test_where_gauss_newton_misses_most_of_the_curvature_the_blend_moves_to_hutchinson() -> None:
    model, batch = tiny.make("bert"), tiny.examples("bert", 8)
    with torch.no_grad():  # sure of labels that are wrong: p (1 - p) is small, and p - y is not
        model.classifier.weight.mul_(4)  # type: ignore[union-attr, operator]
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    wrong = {**batch, "labels": logits.argmin(-1)}
    dense = tiny.dense_hessian(model, wrong).diagonal()
    settings: dict[str, Any] = {"passes": 32, "standard_error": True}
    quiet = estimate(model, tiny.split(wrong, *[1] * 8), estimator="gauss_newton", **settings)
    found = estimate(model, tiny.split(wrong, *[1] * 8), **settings)
    pure = estimate(model, tiny.split(wrong, *[1] * 8), estimator="hutchinson", **settings)

    trace = dense.sum().item()
    assert abs(quiet.trace - trace) > 1.2 * abs(trace)  # of the other sign, even
    assert set(found.blend.values()) == {1.0} and abs(found.trace - trace) < 1.96 * found.trace_stderr
    for one, other in ((found.values, pure.values), (found.stderr, pure.stderr)):
        torch.testing.assert_close(tiny.flat(one), tiny.flat(other))
    assert tiny.relative_error(tiny.flat(found.values), dense) < 0.5 * tiny.relative_error(
        tiny.flat(quiet.values), dense
    )
    (note,) = found.notes
    assert note.startswith("The Gauss–Newton part misses most of the curvature: its trace is ")
    assert f"that of the Hessian {found.trace:.4g} ± {found.trace_stderr:.2g}." in note
    assert pacgen(model, tiny.split(wrong, *[1] * 8), config=ScoreConfig(passes=32), progress=False).status.count(note)
    # of the last layer, in which logits are linear, there is nothing to miss: nothing is said
    model.bert.requires_grad_(False)  # type: ignore[union-attr, operator]
    with torch.no_grad():
        model.classifier.weight.div_(4)  # type: ignore[union-attr, operator]
    linear = estimate(model, tiny.split(wrong, *[1] * 8), passes=32)
    assert linear.notes == () and linear.blend["classifier.bias"] < 1


def test_chance_does_not_enter_the_blend_and_bias_does() -> None:
    # H = v vᵀ: all the noise of a probe has one strength, (v·z)², which must not pass for bias
    torch.manual_seed(0)
    v = torch.randn(400, dtype=torch.float64)
    for bias in (0.0, 10.0):
        shares, ideals = [], []
        for seed in range(20):
            probes, gradients = DiagonalSums(space(v)), DiagonalSums(space(v))
            for batch in range(16):
                signs = RademacherDirection(seed, batch)
                z = signs.piece("w", 0, v)
                probes.add_probe(batch, {"w": v * (v @ z)}, signs, 1.0, {})
                gradients.add_gradient(batch, {"w": (v.square() + bias).sqrt()}, 1.0, {})
            shares.append(blend_share(probes, gradients)[0].item())
            noise = (probes.total["w"] - v.square()).square().sum().item()
            ideals.append(400 * bias**2 / (400 * bias**2 + noise))
        if bias:
            assert all(abs(share - ideal) < 0.2 for share, ideal in zip(shares, ideals, strict=True))
            assert min(shares) > 0.4
        else:
            assert sum(share > 0 for share in shares) <= 2
            assert max(shares) < 0.2


def test_the_estimate_does_not_depend_on_the_attention_implementation() -> None:
    parts = tiny.split(tiny.examples("bert", 6), 4, 2)
    eager, fused = (estimate(tiny.make("bert", kind), parts) for kind in ("eager", "sdpa"))
    assert tiny.relative_error(tiny.flat(eager.values), tiny.flat(fused.values)) < 1e-9


def test_only_touched_embedding_rows_get_probes_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = tiny.bert(hidden_size=64).eval()  # rows start at words of the random stream
    parts = tiny.split(tiny.examples("bert", 7), 4, 3)
    from hf_pacgen.model import embeddings

    with_rows = estimate(model, parts, passes=2)
    monkeypatch.setattr(embeddings, "lone_embeddings", lambda model, parameters: {})
    without = estimate(model, parts, passes=2)
    for name, values in without.values.items():
        torch.testing.assert_close(with_rows.values[name], values, rtol=1e-2, atol=1e-5)
    assert with_rows.trace == pytest.approx(without.trace, rel=1e-3)


def test_other_losses_get_hutchinson_and_say_so() -> None:
    model = tiny.bert(problem_type="regression").double()
    model.num_labels = model.config.num_labels = 1  # type: ignore[union-attr,assignment]
    model.classifier = nn.Linear(4, 1).double()
    batch = tiny.examples("bert", 4)
    batch["labels"] = torch.randn(4, dtype=torch.float64)
    result = estimate(model, [batch], passes=2)
    assert result.estimator is Estimator.BLEND and not result.notes  # a squared error has a second derivative

    def decay(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return sum(p.square().sum() for p in model.parameters()) * 4 + 0 * model(**batch).loss, 4  # type: ignore[return-value]

    custom = estimate(tiny.make("bert"), [tiny.examples("bert", 4)], loss_fn=decay)
    assert custom.estimator is Estimator.HUTCHINSON
    assert "hutchinson instead of blend" in custom.notes[0] and "a loss function that was passed in" in custom.notes[0]


def test_differences_suit_the_precision_of_the_loss_and_not_of_the_weights_alone() -> None:
    # GPT-2 takes its loss in float32 whatever its weights are: a step made for float64 was 0.4 % off, by rounding
    parts = tiny.split(tiny.examples("gpt2", 11), 4, 3, 3, 1)
    exact, differences = (
        estimate(tiny.make("gpt2"), parts, estimator="hutchinson", passes=2, hvp=method).trace
        for method in ("reverse_over_reverse", "finite_difference")
    )
    assert differences == pytest.approx(exact, rel=1e-3)


def test_one_batch_shows_no_spread() -> None:
    result = estimate(tiny.make("bert"), [tiny.examples("bert", 3)], standard_error=True, passes=1)
    assert result.trace_stderr is None
    assert result.blend is not None and not any(result.blend.values())
    once: dict[str, Any] = {"standard_error": True, "passes": 1}
    hutchinson = estimate(tiny.make("bert"), [tiny.examples("bert", 3)], **once, estimator="hutchinson")
    assert tiny.flat(hutchinson.stderr).isnan().all()


@pytest.mark.parametrize("sizes, passes", [((3,), 8), ((2, 1), 4), ((1,) * 9, 1)])
def test_few_batches_are_gone_over_until_their_spread_is_known(sizes: tuple[int, ...], passes: int) -> None:
    batches = tiny.split(tiny.examples("bert", sum(sizes)), *sizes)
    result = estimate(tiny.make("bert"), batches)
    assert result.num_hvps == result.num_gradients == passes * len(sizes)
    assert result.trace_stderr is not None and result.trace_stderr > 0
    explicit = estimate(tiny.make("bert"), batches, estimator="hutchinson", passes=passes)
    assert explicit.trace == result.trace  # the trace is Hutchinson's, whatever the diagonal's estimator


def test_exact_is_refused_on_a_large_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Estimator.EXACT, "facts", replace(Estimator.EXACT.facts, most_parameters=100))
    with pytest.raises(ValueError, match="expected at most 100 trainable parameters, got 4"):
        estimate(tiny.make("bert"), [tiny.examples("bert", 2)], estimator="exact")


def test_a_gradient_that_is_not_finite_names_its_batch() -> None:
    class Kink(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, bad: Tensor) -> Tensor:
            ctx.bad = bool(bad)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grad: Tensor) -> Any:
            return grad[0] * (float("nan") if ctx.bad else 1.0), None

    model = nn.Linear(3, 1)

    def loss(m: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        return Kink.apply(m(batch).square().sum(), batch[0, 0] > 5), len(batch)  # type: ignore[return-value]

    data = [torch.ones(2, 3), torch.full((2, 3), 9.0)]
    with pytest.raises(ValueError, match="gradient of batch 1 is not finite"):
        estimate(model, data, loss_fn=loss)


def test_a_model_that_cannot_do_without_labels() -> None:
    class Demanding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.layer(inputs)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    torch.manual_seed(0)
    batches = [{"inputs": torch.randn(8, 3), "labels": torch.randint(0, 2, (8,))}]
    config = ScoreConfig(estimator="gauss_newton", passes=400)  # type: ignore[arg-type]
    found = hessian_diagonal(Demanding(), batches, config=config, progress=False)
    torch.manual_seed(0)
    exact = hessian_diagonal(Demanding(), batches, config=ScoreConfig(estimator="exact"), progress=False)  # type: ignore[arg-type]
    torch.testing.assert_close(found.values["layer.bias"], exact.values["layer.bias"], rtol=0.2, atol=0.0)
