"""Settings of noise that cannot work are refused, with a remedy, before training starts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from transformers import HfArgumentParser, Trainer, TrainingArguments

from hf_pacgen.config import NoiseConfig
from hf_pacgen.noise.perturbation import Perturbation
from hf_pacgen.training import run_facts as setup
from hf_pacgen.training.arguments import PACGenTrainingArguments, as_config
from hf_pacgen.training.callback.callback import PACGenCallback
from hf_pacgen.training.trainer import PACGenTrainer

METHODS = ("trainer", "callback")

BAD: list[tuple[dict[str, Any], str]] = [
    ({"distribution": "cauchy"}, "distribution must be one of 'uniform'"),
    ({"distribution": "normal"}, "distribution='normal' leaves the box N_i in which the theory holds; use 'truncated"),
    ({"shape": "round"}, "shape must be one of 'pacgen', 'article', 'magnitude', 'isotropic'; got 'round'"),
    ({"curvature": "guess"}, "curvature must be one of 'price', 'adam', 'hutchinson'; got 'guess'"),
    ({"draw": "epoch"}, "draw must be one of 'micro_batch', 'step'; got 'epoch'"),
    ({"eta": 0}, "eta must be a positive number, or 'n' for the number of training examples; got 0"),
    ({"eta": "many"}, "eta must be a positive number"),
    ({"eta": math.inf}, "eta must be a positive number"),
    ({"gamma": -0.1}, "gamma must be a finite number of at least 0; got -0.1"),
    ({"epsilon": math.nan}, "epsilon must be a finite number of at least 0; got nan"),
    ({"warmup_ratio": -0.5}, "warmup_ratio must be a finite number of at least 0; got -0.5"),
    ({"decay_ratio": "0.5"}, "decay_ratio must be a finite number of at least 0"),
    ({"warmup_ratio": 0.6, "decay_ratio": 0.5}, "warmup_ratio + decay_ratio must be at most 1"),
    ({"scale": -1}, "scale must be a finite number of at least 0; got -1"),
    ({"scale": math.inf}, "scale must be a finite number"),
    ({"shape": "isotropic", "scale": 0.2}, "The noise is larger than the box N_i = gamma*|w_i| + epsilon: shape='iso"),
    ({"shape": "isotropic", "scale": 0.2}, "needs epsilon of at least 0.2; got 0.1. Lower scale, or raise epsilon."),
    ({"shape": "magnitude", "scale": 0.2}, "needs gamma of at least 0.2; got 0.1. Lower scale, or raise gamma."),
    ({"epsilon": 1e300}, "epsilon must be a finite number of at least 0 and at most 1e+30; got 1e+300"),
    ({"gamma": 10**400}, "gamma must be a finite number of at least 0"),
    ({"eta": 10**400}, "eta must be a positive number"),
    ({"antithetic": "false"}, "antithetic must be True or False; got 'false'"),
    ({"antithetic": None}, "antithetic must be True or False; got None"),
    ({"distribution": "cauchy"}, "distribution must be one of 'uniform', 'truncated_normal'; got 'cauchy'"),
    ({"rho": "guess"}, "rho must be a number >= 0 or 'estimate'; got 'guess'"),
    ({"rho": -1}, "rho must be a finite number of at least 0; got -1"),
    ({"curvature_decay": 0}, "curvature_decay must be a finite number greater than 0; got 0"),
    ({"curvature_decay": 1.1}, "curvature_decay must be at most 1 (a plain mean); got 1.1"),
    ({"curvature_every": 0}, "curvature_every must be an integer of at least 1; got 0"),
    ({"rho_every": 2.5}, "rho_every must be an integer of at least 1; got 2.5"),
    ({"seed": -1}, "seed must be an integer of at least 0; got -1"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        NoiseConfig(**settings)


def test_noise_as_large_as_the_box_is_allowed() -> None:
    assert NoiseConfig(shape="isotropic", scale=0.1).scale == 0.1  # type: ignore[arg-type]
    assert NoiseConfig(shape="magnitude", scale=0.1, epsilon=0).scale == 0.1  # type: ignore[arg-type]


def test_settings_survive_a_dictionary_and_json() -> None:
    config = NoiseConfig(shape="article", rho="estimate", antithetic=True)  # type: ignore[arg-type]
    assert NoiseConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# -------------------------------------------------------------------------------------------------- forms of settings


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"etta": 1}, "NoiseConfig has no setting 'etta'; it has antithetic"),
        ('{"etta": 1}', "NoiseConfig has no setting 'etta'"),
        ("missing.json", "noise must be a JSON object or the name of a JSON file; there is no file 'missing.json'"),
        ('{"eta": }', "noise is not valid JSON"),
        (3, "noise must be a NoiseConfig or a dictionary of its settings; got 3"),
        ({"scale": -1}, "scale must be a finite number of at least 0; got -1"),
        ("x" * 400, "noise must be a JSON object or the name of a JSON file; there is no file 'xxx"),
    ],
)
def test_bad_forms_are_refused_everywhere(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PACGenCallback(noise=value)
    with pytest.raises(ValueError, match=re.escape(message)):
        PACGenTrainer(tiny.bert(), arguments(tmp_path), noise=value)
    with pytest.raises(ValueError, match=re.escape(message)):
        PACGenTrainingArguments(str(tmp_path), noise=value, use_cpu=True, report_to="none")


def test_a_file_that_is_not_json_or_not_an_object_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "noise.json"
    file.write_text("[1]")
    with pytest.raises(ValueError, match="noise must be a NoiseConfig or a dictionary"):
        as_config(NoiseConfig, str(file), "noise")
    file.write_text("eta: 1")
    with pytest.raises(ValueError, match="noise is not valid JSON"):
        as_config(NoiseConfig, str(file), "noise")
    file.write_bytes(b"\xff{}")
    with pytest.raises(ValueError, match="noise is not valid JSON: 'utf-8' codec"):
        as_config(NoiseConfig, str(file), "noise")


def test_numbers_of_numpy_are_numbers() -> None:
    config = NoiseConfig(gamma=numpy.float32(0.5), seed=numpy.int64(3), curvature_every=numpy.int32(2))  # type: ignore[arg-type]
    assert config == NoiseConfig(gamma=0.5, seed=3, curvature_every=2)
    assert json.loads(json.dumps(config.to_dict()))["seed"] == 3


def test_arguments_are_parsed_from_the_command_line_and_files(tmp_path: Path) -> None:
    file = tmp_path / "noise.json"
    file.write_text('{"shape": "isotropic", "scale": 0.05}')
    parser = HfArgumentParser(PACGenTrainingArguments)  # type: ignore[arg-type]
    common = ["--output_dir", str(tmp_path), "--use_cpu", "True", "--report_to", "none"]
    [args] = parser.parse_args_into_dataclasses([*common, "--noise", str(file), "--score", '{"passes": 2}'])
    assert args.noise_config == NoiseConfig(shape="isotropic", scale=0.05)  # type: ignore[arg-type]
    assert args.score_config.passes == 2
    [args] = parser.parse_args_into_dataclasses([*common, "--noise", "{}"])
    assert args.noise_config == NoiseConfig()
    assert args.score_config is None


def test_a_callback_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"antithetic noise takes two gradients.*Use PACGenTrainer, or antithetic=Fal"):
        PACGenCallback(noise={"antithetic": True})
    with pytest.raises(ValueError, match="score_on must be one of 'evaluate', 'epoch', 'end'; got 'never'"):
        PACGenCallback(score_on="never")


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
    with pytest.raises(ValueError, match=r"not supported with DeepSpeed ZeRO-3, which shards.*or without noise"):
        build(method, tmp_path, {})
    build(method, tmp_path, {"scale": 0})  # no noise, no objection
    build(method, tmp_path, None)


@pytest.mark.parametrize(
    ("sharding", "message"),
    [
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "Noise is not supported with DeepSpeed, which partitions"),
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


def test_the_second_fsdp_is_not_refused() -> None:
    args: Any = SimpleNamespace(fsdp=True, fsdp_plugin_args={"fsdp_version": 2})
    setup.refuse_unsupported(args)


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
    assert "This PACGenCallback does nothing: it has neither noise nor score. Pass" in caplog.text
    caplog.clear()
    PACGenTrainer(tiny.bert(), arguments(tmp_path))
    assert "trains as the plain Trainer does: it has neither noise nor score. Pass noise=" in caplog.text
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
