"""Noisy predictions against a dense oracle, and whatever the batching, the processes and the way out."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator
from launch import on_two_processes
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_pacgen import NoiseConfig, NoisyPredictions, noisy_predictions, perturbed
from hf_pacgen.config import NoiseShape
from hf_pacgen.maths.calibration import expected_calibration_error

SCALE, DRAWS = 0.3, 3


def predicted(model: nn.Module, data: Any, *args: Any, **options: Any) -> NoisyPredictions:
    return noisy_predictions(model, data, *args, **{"progress": False, **options})


def tokens(count: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """A token classifier, and rows some of whose labels do not count."""
    torch.manual_seed(0)
    model = tiny.bert_tokens().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model, tiny.examples("tokens", count, ignore=0.3)


def subject(name: str, count: int = 11) -> tuple[nn.Module, dict[str, Tensor]]:
    return tokens(count) if name == "tokens" else (tiny.make(name), tiny.examples(name, count, ignore=0.3))


def dense(name: str, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The probabilities of every draw, (draws, predictions, classes), by hand; and the labels."""
    weights = {n: p.detach() for n, p in model.named_parameters()}
    rms = {
        n: (w.square().mean(tuple(range(1, w.ndim)), keepdim=True) if w.ndim > 1 else w.square().mean()).sqrt()
        for n, w in weights.items()
    }
    sizes = {n: (SCALE * rms[n]).expand(w.shape) for n, w in weights.items()}
    found = []
    for seed in range(5, 5 + DRAWS):
        with perturbed(model, sizes, seed=seed), torch.no_grad():
            found.append(model(**batch).logits.double().softmax(-1))
    chances, labels = torch.stack(found), batch["labels"]
    if name == "llama":
        chances, labels = chances[:, :, :-1], labels[:, 1:]
    return (chances[:, labels != -100], labels[labels != -100]) if labels.ndim > 1 else (chances, labels)


def entropies(chances: Tensor) -> Tensor:
    return -(chances * chances.log()).sum(-1)


@pytest.mark.parametrize("name", ["bert", "vit", "tokens", "llama"])
def test_against_a_dense_oracle(name: str) -> None:
    model, batch = subject(name)
    found = predicted(model, tiny.split(batch, 4, 4, 3), SCALE, DRAWS, seed=5)
    chances, labels = dense(name, model, batch)
    mean = chances.mean(0)
    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
    at = mean.argmax(1)
    torch.testing.assert_close(found.probabilities, mean, **close)
    torch.testing.assert_close(found.entropy, entropies(mean), **close)
    torch.testing.assert_close(found.expected_entropy, entropies(chances).mean(0), **close)
    torch.testing.assert_close(found.mutual_information, entropies(mean) - entropies(chances).mean(0), **close)
    torch.testing.assert_close(found.spread, chances.std(0, correction=0).gather(1, at[:, None])[:, 0], **close)
    assert torch.equal(found.predicted, at) and found.labels is not None and torch.equal(found.labels, labels)
    of_label, right = mean.gather(1, labels[:, None])[:, 0], (at == labels).double()
    brier = (mean - nn.functional.one_hot(labels, mean.shape[1])).square().sum(1).mean().item() / 2
    ece = expected_calibration_error(mean.amax(1).numpy(), right.numpy())
    metrics = found.metrics()
    assert list(metrics) == ["accuracy", "nll", "brier", "ece", "ece_adaptive", "aurc"]
    wanted = [right.mean().item(), -of_label.log().mean().item(), brier, ece]
    assert [metrics[key] for key in ("accuracy", "nll", "brier", "ece")] == pytest.approx(wanted)
    assert found.unit == ("example" if name in ("bert", "vit") else "token") and found.num_examples == 11
    assert found.num_predictions == len(labels) and int(found.example[-1]) == 10


@pytest.mark.parametrize("name", ["bert", "tokens", "llama"])
def test_without_noise_it_is_the_model_bit_for_bit(name: str) -> None:
    model, batch = subject(name)
    with torch.no_grad():
        plain = model(**batch).logits.double().softmax(-1)
    labels = batch["labels"]
    if name == "llama":
        plain, labels = plain[:, :-1], labels[:, 1:]
    plain = plain[labels != -100]
    found = predicted(model, [batch], 0, 5)
    assert torch.equal(found.probabilities, plain) and found.metrics() == found.plain
    assert not found.mutual_information.any() and not found.spread.any() and found.draws == 1
    assert "There is no noise" in found.status[0]


@pytest.mark.parametrize("name", ["vit", "tokens"])
def test_batches_make_no_difference(name: str) -> None:
    model, batch = subject(name, 9)
    one, all_ = predicted(model, tiny.split(batch, *[1] * 9), SCALE), predicted(model, tiny.split(batch, 8, 1), SCALE)
    torch.testing.assert_close(one.probabilities, all_.probabilities, rtol=1e-9, atol=1e-12)
    assert one.metrics() == pytest.approx(all_.metrics()) and torch.equal(one.example, all_.example)


def _on_both() -> None:
    model, batch = subject("tokens", 7)
    parts = tiny.split(batch, 2, 2, 2, 1)
    alone = predicted(model, parts, SCALE, training_data=None)
    both = predicted(model, parts, SCALE, accelerator=Accelerator(cpu=True))
    assert torch.equal(alone.probabilities, both.probabilities) and alone.metrics() == both.metrics()
    assert torch.equal(alone.spread, both.spread) and torch.equal(alone.example, both.example)
    one = predicted(model, parts, training_data=parts)
    two = predicted(model, parts, training_data=parts, accelerator=Accelerator(cpu=True))
    assert one.noise_scale == two.noise_scale and one.auto == two.auto
    with pytest.raises(ValueError, match="Process 1 has another model, data or settings"):
        predicted(model, parts, 0.1 + 0.1 * Accelerator(cpu=True).process_index, accelerator=Accelerator(cpu=True))


def test_two_processes_predict_what_one_does() -> None:
    on_two_processes(_on_both)


class Breaks(nn.Module):
    """Fails in its third forward pass, which is under noise."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls, self.seen = nn.Linear(3, 2), 0, False
        self.kept: Any = None

    def forward(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == 3:
            self.seen = not torch.equal(self.linear.weight, self.kept)
            raise RuntimeError("no more")
        return {"logits": self.linear(features)}


@pytest.mark.parametrize("error", [None, "no more"])
def test_weights_modes_and_random_state_are_back(error: str | None) -> None:
    model, state = Breaks().train(), torch.get_rng_state()
    model.kept = before = model.linear.weight.detach().clone()
    batch = {"features": torch.ones(2, 3), "labels": torch.tensor([0, 1])}
    if error is None:
        model.calls = 10
        predicted(model, [batch], 0.5)
    else:
        with pytest.raises(RuntimeError, match=error):
            predicted(model, [batch], 0.5)
        assert model.seen  # it was under noise
    assert torch.equal(model.linear.weight, before) and model.training and model.linear.training
    assert torch.equal(torch.get_rng_state(), state)


def test_of_many_classes_the_likeliest_are_kept() -> None:
    model, batch = subject("llama")
    whole, few = predicted(model, [batch], SCALE, DRAWS), predicted(model, [batch], SCALE, DRAWS, top_classes=4)
    assert few.classes is not None and few.classes.shape == few.probabilities.shape == (len(few.entropy), 4)
    torch.testing.assert_close(few.probabilities, whole.probabilities.gather(1, few.classes))
    assert few.labels is not None and bool((few.classes == few.labels[:, None]).any(1).all())
    assert few.nll == pytest.approx(whole.nll) and few.brier is not None and few.brier > (whole.brier or 0)
    assert bool((few.entropy <= whole.entropy + 1e-12).all())
    assert bool((few.mutual_information <= whole.mutual_information + 1e-12).all())
    assert any("the 4 likeliest classes are kept" in note and "likelier class" in note for note in few.status)
    every = predicted(model, [batch], SCALE, DRAWS, top_classes=99)
    assert every.classes is None and every.metrics() == whole.metrics()


def test_without_labels_there_are_no_metrics() -> None:
    model, batch = subject("tokens")
    bare = {"input_ids": batch["input_ids"], "attention_mask": torch.ones_like(batch["input_ids"])}
    bare["attention_mask"][0, 3:] = 0
    found = predicted(model, [bare], SCALE)
    assert found.metrics() == {} and found.labels is None and found.num_predictions == 11 * 5 - 2
    assert any("no labels" in note for note in found.status) and "label" not in found.table()
    model, batch = subject("vit")
    found = predicted(model, [{"pixel_values": batch["pixel_values"]}], SCALE)
    labeled = predicted(model, [batch], SCALE)
    assert torch.equal(found.probabilities, labeled.probabilities) and found.plain == {}


def test_other_shapes_of_noise() -> None:
    model, batch = subject("vit")
    found = predicted(model, [batch], NoiseConfig(shape=NoiseShape.ISOTROPIC, scale=0.05), 1, seed=3)
    with perturbed(model, 0.05, seed=3), torch.no_grad():
        wanted = model(**batch).logits.softmax(-1)
    torch.testing.assert_close(found.probabilities, wanted)
    assert found.noise["shape"] == "isotropic" and found.noise_scale == 0.05


def test_a_loader_that_shuffles_is_told() -> None:
    model, batch = subject("vit")
    rows = [{name: column[i] for name, column in batch.items()} for i in range(11)]
    found = predicted(model, DataLoader(rows, batch_size=4, shuffle=True), SCALE)  # type: ignore[arg-type]
    assert any("The loader shuffles" in note for note in found.status) and found.num_predictions == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected training_data, got none"),
        ({"noise_scale": -0.1}, "noise_scale must be a finite number >= 0; got -0.1"),
        ({"noise_scale": float("inf")}, "noise_scale must be a finite number >= 0; got inf"),
        ({"noise_scale": "large"}, "must be a number >= 0, a NoiseConfig or 'auto'; got 'large'"),
        ({"noise_scale": None}, "got NoneType"),
        ({"noise_scale": NoiseConfig()}, "whose level follows a curvature that is known in training only"),
        ({"noise_scale": 0.1, "draws": 0}, "draws must be an integer of at least 1; got 0"),
        ({"noise_scale": 0.1, "seed": -1}, "seed must be an integer of at least 0; got -1"),
        ({"noise_scale": 0.1, "top_classes": 0}, "top_classes must be an integer of at least 1; got 0"),
        ({"noise_scale": 0.1, "max_examples": 0}, "max_examples must be an integer of at least 1; got 0"),
        ({"noise_scale": 0.1, "loss_fn": print}, r"noisy_predictions\(\) takes no loss_fn"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    model, batch = subject("vit")
    with pytest.raises(ValueError, match=message):
        predicted(model, [batch], **options)


def test_no_data_is_no_prediction() -> None:
    model, _ = subject("vit")
    with pytest.raises(ValueError, match="The data has nothing to predict"):
        predicted(model, [], 0.1)


def test_a_frozen_model_has_nothing_to_perturb() -> None:
    model, batch = subject("vit")
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"no trainable parameters.*or give noise_scale=0"):
        predicted(model, [batch], 0.1)
    assert predicted(model, [batch], 0).num_predictions == 11


def test_batch_norm_without_statistics_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self, running: bool) -> None:
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(3, track_running_stats=running), nn.Linear(3, 2)

        def forward(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            return {"logits": self.linear(self.norm(features))}

    batch = {"features": torch.randn(4, 3), "labels": torch.tensor([0, 1, 0, 1])}
    with pytest.raises(ValueError, match="The batch-norm 'norm' is without running statistics"):
        predicted(Net(False), [batch], 0.1)
    model = Net(True).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert predicted(model, [batch], 0.1).num_predictions == 4
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
