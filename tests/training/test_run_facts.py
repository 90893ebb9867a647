"""Settings of noise that cannot work are refused, with a remedy, before training starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import training_runs
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from transformers import Trainer, TrainingArguments

from hf_pacgen.config import ScoreConfig
from hf_pacgen.noise.perturbation import Perturbation
from hf_pacgen.training import run_facts as setup
from hf_pacgen.training.callback.callback import PACGenCallback
from hf_pacgen.training.trainer import PACGenTrainer

METHODS = ("trainer", "callback")


# -------------------------------------------------------------------------------------------------- forms of settings


# ------------------------------------------------------------------------------------------------------ runs


class Examples(Dataset[dict[str, Tensor]]):
    batch = tiny.examples("bert", 8)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: values[index] for key, values in self.batch.items()}


class Stream(IterableDataset[dict[str, Tensor]]):
    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        data = Examples()
        return (data[i % 8] for i in range(16))


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "no"}
    common: dict[str, Any] = {"output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return TrainingArguments(**common | settings | changes)


def build(method: str, folder: Path, noise: Any, *, model: nn.Module | None = None, **changes: Any) -> Any:
    data = changes.pop("data", None) or Examples()
    model, args = tiny.bert() if model is None else model, arguments(folder, **changes)
    if method == "trainer":
        return PACGenTrainer(model, args, train_dataset=data, noise=noise)
    return Trainer(model, args, train_dataset=data, callbacks=[PACGenCallback(noise=noise)])


def refuses(trainer: Any, message: str) -> None:
    """Training raises before the first step, and leaves the weights alone."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


@pytest.mark.parametrize("method", METHODS)
def test_adam_needs_an_optimizer_with_second_moments(method: str, tmp_path: Path) -> None:
    trainer = build(method, tmp_path, {"curvature": "adam"}, optim="sgd")
    refuses(trainer, r"curvature='adam' reads exp_avg_sq, which SGD does not keep.*or curvature='price'")


@pytest.mark.parametrize("method", METHODS)
def test_other_shapes_take_any_optimizer(method: str, tmp_path: Path) -> None:
    trainer = build(method, tmp_path, {"curvature": "adam", "shape": "isotropic"}, optim="sgd")
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("method", METHODS)
def test_eta_n_needs_the_number_of_examples(method: str, tmp_path: Path) -> None:
    refuses(build(method, tmp_path, {}, data=Stream()), r"eta='n' is the number of training examples.*Set eta to a num")


@pytest.mark.parametrize("method", METHODS)
def test_a_stream_trains_with_a_number_for_eta(method: str, tmp_path: Path) -> None:
    trainer = build(method, tmp_path, {"eta": 16}, data=Stream())
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_of_other_parameters_is_refused(method: str, tmp_path: Path) -> None:
    build(method, tmp_path, {}, save_strategy="steps", save_steps=1).train()
    model: Any = tiny.bert()
    model.classifier.bias.requires_grad_(False)
    trainer = build(method, tmp_path, {}, model=model, max_steps=4)
    trainer._load_optimizer_and_scheduler = lambda *_: None  # type: ignore[method-assign]  # it would refuse first
    with pytest.raises(ValueError, match=r"belongs to other trainable parameters \(different: \['classifier.bias'\]\)"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize("optimizer", ["lomo", "adalomo", "galore_adamw_layerwise", "apollo_adamw_layerwise"])
def test_optimizers_that_step_in_the_backward_pass_are_refused(optimizer: str, tmp_path: Path) -> None:
    for method in METHODS:
        with pytest.raises(ValueError, match=f"with optim='{optimizer}', which changes the weights during"):
            build(method, tmp_path, {}, optim=optimizer)


@pytest.mark.parametrize("method", METHODS)
def test_zero_3_is_refused_before_training(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match=r"not supported with DeepSpeed ZeRO-3, which shards.*or train without noise"):
        build(method, tmp_path, {})
    build(method, tmp_path, {"scale": 0})  # no noise, no objection
    build(method, tmp_path, None)


@pytest.mark.parametrize(
    ("sharding", "message"),
    [
        (
            {"fsdp": True, "fsdp_plugin_args": {"fsdp_version": 1}},
            r"FSDP of version 1, which flattens the parameters: expected version 2. Set fsdp_config=.'version': 2.",
        ),
        ({"fsdp": True}, "Noise is not supported with FSDP of version 1"),
    ],
)
def test_other_sharding_is_refused(sharding: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        setup.refuse_unsupported(SimpleNamespace(**sharding))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sharding",
    [{"fsdp": True, "fsdp_plugin_args": {"fsdp_version": 2}}, {"deepspeed": {"zero_optimization": {"stage": 2}}}],
)
def test_the_second_fsdp_and_zero_2_are_not_refused(sharding: dict[str, Any]) -> None:
    setup.refuse_unsupported(SimpleNamespace(**sharding))  # type: ignore[arg-type]


def test_a_sharded_parameter_is_refused() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.ds_id = 0  # type: ignore[attr-defined]  # the mark of ZeRO-3
    with pytest.raises(ValueError, match=r"parameter 'weight' is sharded over processes .*needs whole parameters"):
        Perturbation({"weight": parameter})


def test_noise_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"both have noise, which would add up\. Give it to one only"):
        PACGenTrainer(tiny.bert(), arguments(tmp_path), noise={}, callbacks=[PACGenCallback(noise={})])
    model = tiny.bert()
    clean = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = build("callback", tmp_path, {}, model=model)
    trainer.add_callback(second := PACGenCallback(noise={"seed": 1}))
    for _ in range(2):  # the refusal leaves nothing behind that would let it pass
        refuses(trainer, "have noise, which would add up")
    assert all(parameter.equal(clean[name]) for name, parameter in model.named_parameters())
    trainer.remove_callback(second)
    trainer.train()


@pytest.mark.parametrize("metric", ["eval_pacgen_kl", "pacgen", "eval_hessian_trace"])
def test_a_best_model_by_a_score_that_is_not_computed_is_refused(metric: str, tmp_path: Path) -> None:
    args = arguments(tmp_path, metric_for_best_model=metric)
    with pytest.raises(ValueError, match=rf"metric_for_best_model='{metric}' is a score, and .* computes none\. Pass"):
        PACGenTrainer(tiny.bert(), args, noise={})
    PACGenTrainer(tiny.bert(), args, score={})
    PACGenTrainer(tiny.bert(), args, callbacks=[PACGenCallback(score={})])


def test_what_does_nothing_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Trainer(tiny.bert(), arguments(tmp_path), callbacks=[PACGenCallback])
    assert "This PACGenCallback does nothing: it has neither noise nor score, nor ema. Pass" in caplog.text
    caplog.clear()
    PACGenTrainer(tiny.bert(), arguments(tmp_path))
    assert "trains as the plain Trainer does: it has neither noise nor score, nor ema. Pass" in caplog.text
    caplog.clear()
    for given in ({"noise": {"scale": 0.0}}, {"score": {}}):
        PACGenTrainer(tiny.bert(), arguments(tmp_path), **given)
        Trainer(tiny.bert(), arguments(tmp_path), callbacks=[PACGenCallback(**given)])
    assert not caplog.text


@pytest.mark.parametrize("method", METHODS)
def test_a_model_without_trainable_parameters_is_refused(method: str, tmp_path: Path) -> None:
    model = tiny.bert().requires_grad_(False)
    refuses(build(method, tmp_path, {}, model=model), "no trainable parameters")


def test_a_score_needs_training_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="A score is of the training data: pass train_dataset"):
        PACGenTrainer(tiny.bert(), arguments(tmp_path)).pacgen()


def test_a_model_that_is_cast_during_training_is_refused() -> None:
    layer = nn.Linear(2, 2)
    noise = Perturbation(dict(layer.named_parameters()))
    layer.to(torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"'weight' was \(2, 2\) torch.float32 .* Move and cast the model before"):
        noise.draw(lambda block, weights: torch.full_like(weights, 0.1), 0)


@pytest.mark.parametrize("kind", ["callback", "trainer"])
@pytest.mark.parametrize(
    ("metric", "learning_rate", "warns"),
    [
        ("eval_pacgen_kl", 0.01, True),
        ("hessian_trace", 0.01, True),
        ("eval_loss", 0.01, False),
        ("pacgen", 1e-6, False),
    ],
)
def test_choosing_the_best_model_by_a_score_warns_once_where_training_losses_differ(
    kind: str, metric: str, learning_rate: float, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    score = ScoreConfig(estimator="gauss_newton", lipschitz_directions=0)  # type: ignore[arg-type]
    args = arguments(
        tmp_path,
        metric_for_best_model=metric,
        greater_is_better=False,
        load_best_model_at_end=True,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=5,
        save_steps=5,
        max_steps=25,
        lr_scheduler_type="constant",
        learning_rate=learning_rate,
    )
    data: Any = {"train_dataset": training_runs.Sentences(16), "eval_dataset": training_runs.Sentences(8)}
    model = training_runs.bert(dropout=0.0)
    trainer = (
        Trainer(model, args, callbacks=[PACGenCallback(score=score)], **data)
        if kind == "callback"
        else PACGenTrainer(model, args, score=score, **data)
    )
    trainer.train()
    told = [r.getMessage() for r in caplog.records if "is to choose between checkpoints" in r.getMessage()]
    assert len(told) == warns
    if warns:
        assert f"metric_for_best_model='{metric}' is to choose between checkpoints of different training" in told[0]
        assert "A score ranks solutions of equal training loss only" in told[0] and "'eval_loss'" in told[0]
