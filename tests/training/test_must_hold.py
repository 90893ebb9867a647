"""Promises of shaped noise: plain without it, clean weights whatever happens, the same in every setting."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from launch import on_two_processes
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_jit_checkpoint import CheckpointManager

from hf_pacgen.config import NoiseConfig
from hf_pacgen.training.callback.callback import PACGenCallback
from hf_pacgen.training.noisy_step import NoisyStep
from hf_pacgen.training.trainer import PACGenTrainer

METHODS = ("trainer", "callback")
SCORE = {"max_examples": 8, "lipschitz_directions": 0}


def bert(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return tiny.bert(hidden_size=8, intermediate_size=12, **changes)


class Examples(Dataset[dict[str, Tensor]]):
    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: values[index] for key, values in self.batch.items()}


def examples(name: str = "bert", count: int = 32) -> Examples:
    return Examples(tiny.examples(name, count))


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return TrainingArguments(**settings | changes)


def build(
    method: str,
    folder: Path,
    noise: Any,
    *,
    model: nn.Module | None = None,
    data: Any = None,
    before: tuple[TrainerCallback, ...] = (),
    after: tuple[TrainerCallback, ...] = (),
    score: Any = None,
    eval_data: Any = None,
    **changes: Any,
) -> Any:
    """A Trainer with noise, by either method, with callbacks before and after where the callback has its place."""
    model = bert() if model is None else model
    data = examples() if data is None else data
    args = arguments(folder, **changes)
    settings: dict[str, Any] = {"train_dataset": data, "eval_dataset": eval_data}
    if method == "trainer":
        return PACGenTrainer(model, args, noise=noise, score=score, callbacks=[*before, *after], **settings)
    middle = [PACGenCallback(noise=noise, score=score)] if method == "callback" else []
    return Trainer(model, args, callbacks=[*before, *middle, *after], **settings)


def engine_of(trainer: Any) -> NoisyStep:
    if isinstance(trainer, PACGenTrainer):
        engine = trainer._noisy_step
    else:
        [engine] = [c.noisy_step for c in trainer.callback_handler.callbacks if isinstance(c, PACGenCallback)]
    assert engine is not None
    return engine


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different


class Watch(TrainerCallback):
    """Notes the clean weights before a step, and whether forward passes in training mode see others.

    It stands before the PACGenCallback, so no noise is on yet.
    """

    def __init__(self) -> None:
        self.clean: dict[str, Tensor] = {}
        self.first: dict[str, Tensor] | None = None
        self.noisy: list[bool] = []
        self._handle: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.clean = weights_of(model)
        self.first = self.clean if self.first is None else self.first
        if self._handle is None:
            # on a part of the model: noise that an aborted step left behind is taken off as the whole is entered
            part = next(module for module in model.modules() if not list(module.children()))
            self._handle = part.register_forward_pre_hook(lambda *_: self._look(model))

    def _look(self, model: nn.Module) -> None:
        if model.training and torch.is_grad_enabled():
            self.noisy.append(
                any(not torch.equal(parameter, self.clean[name]) for name, parameter in model.named_parameters())
            )


class CleanAtOptimizer(TrainerCallback):
    """Checks, after the PACGenCallback, that the optimizer finds the weights of the step's beginning."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.steps = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        assert_equal(weights_of(model), self.watch.clean)
        self.steps += 1


# ---------------------------------------------------------------------------------------------------- without noise


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[Any]]:
    """Weights and log of the plain Trainer after 20 steps with dropout, clipping and accumulation."""
    trainer = build("plain", tmp_path_factory.mktemp("plain"), None, max_steps=20, gradient_accumulation_steps=2)
    trainer.train()
    return weights_of(trainer.model), losses(trainer)


def losses(trainer: Any) -> list[Any]:
    return [(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    "noise",
    [None, {"scale": 0}, {"gamma": 0, "epsilon": 0}],
    ids=["none", "scale", "box"],
)
@pytest.mark.parametrize("method", METHODS)
def test_without_noise_it_is_the_plain_trainer(
    method: str, noise: Any, plain: tuple[dict[str, Tensor], list[Any]], tmp_path: Path
) -> None:
    trainer = build(method, tmp_path, noise, max_steps=20, gradient_accumulation_steps=2)
    trainer.train()
    assert_equal(weights_of(trainer.model), plain[0])
    assert losses(trainer) == plain[1]
    assert len(plain[1]) == 20


# --------------------------------------------------------------------------------------------------- restore points


class Broken(Exception):
    pass


def break_in(place: str, trainer: Any, at: int) -> list[Any]:
    """Let the ``at``-th forward, backward or optimizer step raise; returns handles to mend it."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Broken

    def on_output(module: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(count)

    classifier = trainer.model.classifier
    if place == "forward":
        return [classifier.register_forward_pre_hook(count)]
    if place == "backward":
        return [classifier.register_forward_hook(on_output)]
    return [trainer.create_optimizer().register_step_pre_hook(count)]


@pytest.mark.parametrize("place", ["forward", "backward", "optimizer"])
@pytest.mark.parametrize(
    ("method", "first_use"),
    [("trainer", "train"), ("callback", "save"), ("callback", "forward"), ("callback", "train")],
)
def test_weights_are_clean_after_an_exception(method: str, place: str, first_use: str, tmp_path: Path) -> None:
    watch = Watch()
    trainer = build(method, tmp_path, NoiseConfig(), before=(watch,), max_steps=3)
    handles = break_in(place, trainer, at=3)
    with pytest.raises(Broken):
        trainer.train()
    assert watch.noisy == [True] * 3
    clean = watch.clean
    if method == "trainer":
        assert_equal(weights_of(trainer.model), clean)
    for handle in handles:
        handle.remove()
    if first_use == "save":
        assert_equal({n: t for n, t in trainer.model.state_dict().items() if n in clean}, clean)
    elif first_use == "forward":
        with torch.no_grad():
            trainer.model(**tiny.examples("bert", 2))
    else:
        watch.first = None
        trainer.train()
        assert watch.first is not None
        assert_equal(watch.first, clean)
        return
    assert_equal(weights_of(trainer.model), clean)


class Interrupt(TrainerCallback):
    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_clean_after_an_interrupt_in_an_accumulation(method: str, tmp_path: Path) -> None:
    watch = Watch()
    trainer = build(
        method, tmp_path, NoiseConfig(), before=(watch,), after=(Interrupt(),), gradient_accumulation_steps=4
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    saved = trainer.model.state_dict()
    assert_equal({name: saved[name] for name in watch.clean}, watch.clean)
    assert_equal(weights_of(trainer.model), watch.clean)


class Save(TrainerCallback):
    """Saves on every event of a step, by state_dict, and by the checkpoint that SIGTERM asks for."""

    trainer: Any

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.saved = 0

    def _save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = self.trainer.model
        found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert_equal({name: found[name] for name in self.watch.clean}, self.watch.clean)
        CheckpointManager(self.trainer).execute_jit_checkpoint()
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "model.safetensors"
        assert_equal({name: tensor for name, tensor in load_file(path).items() if name in found}, self.watch.clean)
        self.saved += 1

    on_step_begin = on_substep_end = on_pre_optimizer_step = _save


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("method", METHODS)
def test_saves_are_clean_and_change_nothing(method: str, order: str, tmp_path: Path) -> None:
    untouched = build(method, tmp_path / "untouched", NoiseConfig(), gradient_accumulation_steps=2, max_steps=3)
    untouched.train()

    watch = Watch()
    save = Save(watch)
    places: dict[str, Any] = {"before": (watch, save)} if order == "before" else {"before": (watch,), "after": (save,)}
    trainer = build(method, tmp_path / "saved", NoiseConfig(), gradient_accumulation_steps=2, max_steps=3, **places)
    save.trainer = trainer
    trainer.train()

    assert save.saved == 9
    assert watch.noisy == [True] * 6  # the noise was back after every save
    assert_equal(weights_of(trainer.model), weights_of(untouched.model))


@pytest.mark.parametrize("method", METHODS)
def test_an_evaluation_in_a_step_finds_clean_weights(method: str, tmp_path: Path) -> None:
    class Evaluate(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            batch = tiny.examples("bert", 4)
            with torch.no_grad():
                logits = model.eval()(**batch).logits
                reference = copy.deepcopy(model)
                for name, parameter in reference.named_parameters():
                    parameter.data = watch.clean[name].clone()
                expected = reference.eval()(**batch).logits
            model.train()
            assert torch.equal(logits, expected)

    watch = Watch()
    trainer = build(
        method, tmp_path, NoiseConfig(), before=(watch,), after=(Evaluate(),), gradient_accumulation_steps=2
    )
    trainer.train()
    assert watch.noisy.count(True) == 8


@pytest.mark.parametrize("max_steps", [50, 4], ids=["early stopping", "max_steps"])
@pytest.mark.parametrize("method", METHODS)
def test_training_that_stops_early_ends_clean(method: str, max_steps: int, tmp_path: Path) -> None:
    class LastStep(TrainerCallback):
        weights: dict[str, Tensor]

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    last = LastStep()
    trainer = build(
        method,
        tmp_path,
        NoiseConfig(),
        after=(last, EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=100.0)),
        eval_data=examples(count=4),
        max_steps=max_steps,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=False,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    trainer.train()
    assert trainer.state.global_step == 4  # in the middle of the first epoch, which has 8
    weights = weights_of(trainer.model)
    assert_equal(weights, {name: last.weights[name] for name in weights})
    assert not trainer.model._forward_pre_hooks
    assert not any(module._state_dict_pre_hooks for module in trainer.model.modules())


# --------------------------------------------------------------------------------------------------- the same result


@pytest.mark.parametrize("curvature", ["price", "adam", "hutchinson"])
def test_callback_equals_trainer_with_one_draw_a_step(curvature: str, tmp_path: Path) -> None:
    noise = {"curvature": curvature, "draw": "step", "curvature_every": 2, "eta": 1000}
    found = []
    for method in METHODS:
        trainer = build(method, tmp_path / method, noise, gradient_accumulation_steps=2, max_steps=8, max_grad_norm=0.1)
        trainer.train()
        found.append(weights_of(trainer.model))
    assert_equal(*found)
    silent = build("plain", tmp_path, None, gradient_accumulation_steps=2, max_steps=8, max_grad_norm=0.1)
    silent.train()
    assert any(not torch.equal(found[0][name], tensor) for name, tensor in weights_of(silent.model).items())


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_with_a_shared_draw_equals_one_batch(method: str, tmp_path: Path) -> None:
    data = examples("llama")
    noise = {"draw": "step", "eta": 1000, "curvature_every": 1}
    found = []
    for batch, accumulation in ((8, 1), (1, 8)):
        trainer = build(
            method,
            tmp_path,
            noise,
            model=tiny.make("llama", dtype=torch.float32),
            data=data,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=5,
            optim="sgd",
            learning_rate=0.1,
        )
        trainer.train()
        found.append(weights_of(trainer.model))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("curvature", "distribution"),
    [("price", "uniform"), ("hutchinson", "truncated_normal"), ("adam", "uniform")],
)
@pytest.mark.parametrize("method", METHODS)
def test_resumed_training_equals_uninterrupted(method: str, curvature: str, distribution: str, tmp_path: Path) -> None:
    noise: dict[str, Any] = {"curvature": curvature, "distribution": distribution, "curvature_every": 2, "eta": 1000}
    noise |= {"warmup_ratio": 0.4, "decay_ratio": 0.3}
    settings: dict[str, Any] = {"max_steps": 10, "save_strategy": "steps", "save_steps": 5}
    whole = build(method, tmp_path, noise, **settings)
    whole.train()
    torch.manual_seed(99)
    resumed = build(method, tmp_path, noise, model=bert(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert_equal(weights_of(resumed.model), weights_of(whole.model))
    assert losses(resumed) == losses(whole)


# -------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("method", METHODS)
def test_scores_reach_what_evaluation_returns_the_log_and_the_choice_of_the_best_model(
    method: str, tmp_path: Path
) -> None:
    trainer = build(
        method,
        tmp_path,
        NoiseConfig(),
        score=SCORE,
        eval_data=examples(count=8),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_pacgen_kl",
        greater_is_better=False,
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "eval_pacgen" in entry]
    assert [entry["step"] for entry in logged] == [2, 4]
    if method == "trainer":
        assert all("eval_loss" in entry for entry in logged)  # one line, so reporters get them together
    best = min(logged, key=lambda entry: entry["eval_pacgen_kl"])
    assert trainer.state.best_metric == best["eval_pacgen_kl"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best['step']}")
    assert trainer.evaluate()["eval_pacgen_kl"] == pytest.approx(best["eval_pacgen_kl"])


# ------------------------------------------------------------------------------------------------ kinds of training


def lora() -> tuple[nn.Module, dict[str, Any]]:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(bert(), peft.LoraConfig(target_modules=["query", "value"], r=2)), {}


def tied_and_frozen() -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model: Any = tiny.gpt2()  # its head is its embedding
    model.transformer.h[0].requires_grad_(False)
    return model, {"data": examples("gpt2")}


def bf16_weights() -> tuple[nn.Module, dict[str, Any]]:
    return bert().to(torch.bfloat16), {}


def mixed_weights() -> tuple[nn.Module, dict[str, Any]]:
    model: Any = bert()
    model.bert.embeddings.word_embeddings.to(torch.bfloat16)
    model.bert.embeddings.word_embeddings.register_forward_hook(lambda _, __, output: output.float())
    return model, {}


def bf16_autocast() -> tuple[nn.Module, dict[str, Any]]:
    return bert(), {"bf16": True}


def checkpointing() -> tuple[nn.Module, dict[str, Any]]:
    return bert(), {"gradient_checkpointing": True}


KINDS: tuple[Callable[[], tuple[nn.Module, dict[str, Any]]], ...] = (
    lora,
    tied_and_frozen,
    bf16_weights,
    mixed_weights,
    bf16_autocast,
    checkpointing,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("method", "antithetic"),
    [("trainer", False), ("trainer", True), ("callback", False)],
    ids=["trainer", "antithetic", "callback"],
)
def test_every_kind_of_training_keeps_its_restore_point(
    method: str, kind: Callable[[], tuple[nn.Module, dict[str, Any]]], antithetic: bool, tmp_path: Path
) -> None:
    model, settings = kind()
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    before = weights_of(model)
    watch = Watch()
    check = CleanAtOptimizer(watch)
    noise = NoiseConfig(antithetic=antithetic, eta=100, curvature_every=1)
    trainer = build(
        method,
        tmp_path,
        noise,
        model=model,
        before=(watch,),
        after=(check,),
        max_steps=3,
        gradient_accumulation_steps=2,
        **settings,
    )
    trainer.train()
    assert check.steps == 3
    assert watch.noisy
    assert all(watch.noisy)
    after = weights_of(model)
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(tensor.isfinite().all() for tensor in after.values())


@pytest.mark.parametrize("method", METHODS)
def test_autocast_uses_the_noisy_weights(method: str, tmp_path: Path) -> None:
    """Autocast caches casts of weights; the loss is not that of clean ones."""
    seen = []
    for scale in (0.0, 0.1):
        noise = {"shape": "isotropic", "scale": scale}
        trainer = build(method, tmp_path, noise, bf16=True, max_steps=2)
        trainer.train()
        seen.append(losses(trainer))
    assert seen[0][0] != seen[1][0]


# --------------------------------------------------------------------------------------------------- many processes


def _train_replica(method: str, folder: str, settings: dict[str, Any]) -> None:
    watch = Watch()
    trainer = build(
        method,
        Path(folder),
        NoiseConfig(eta=1000, **settings),
        before=(watch,),
        max_steps=20,
        per_device_train_batch_size=2,
        ddp_backend="gloo",
    )
    assert trainer.args.world_size == 2
    curvature: dict[str, Tensor] = {}

    class Note(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            curvature.update(engine_of(trainer).tracker.curvature())

    trainer.add_callback(Note())
    trainer.train()
    assert watch.noisy
    assert all(watch.noisy)
    torch.save((weights_of(trainer.model), curvature), Path(folder) / f"rank{trainer.args.process_index}.pt")


@pytest.mark.parametrize(
    ("method", "settings"),
    [("trainer", {}), ("trainer", {"antithetic": True}), ("callback", {})],
    ids=["trainer", "antithetic", "callback"],
)
def test_replicas_of_two_processes_stay_identical(method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    on_two_processes(_train_replica, method, str(tmp_path), settings)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert_equal(first[0], second[0])
    assert_equal(first[1], second[1])


# -------------------------------------------------------------------------------------------------------- curvature


class Quadratic(nn.Module):
    """(w - a)ᵀ A (w - a) / 2 with off-diagonal curvature, whatever the batch."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        root = torch.randn(8, 8, generator=generator)
        self.first = nn.Parameter(torch.randn(5, generator=generator))
        self.second = nn.Parameter(torch.randn(3, generator=generator))
        self.hessian: Tensor
        self.center: Tensor
        self.register_buffer("hessian", torch.diag(torch.arange(1.0, 9.0)) + 0.05 * (root + root.T))
        self.register_buffer("center", torch.cat([self.first, self.second]).detach() + 0.01)

    def forward(self, labels: Tensor) -> dict[str, Tensor]:
        away = torch.cat([self.first, self.second]) - self.center
        return {"loss": away @ self.hessian @ away / 2 + 0 * labels.float().mean()}


@pytest.mark.parametrize(
    ("method", "settings", "clip", "steps"),
    [
        ("trainer", {"curvature": "price"}, 0.0, 300),
        ("trainer", {"curvature": "price", "distribution": "truncated_normal"}, 0.0, 300),
        ("trainer", {"curvature": "price", "antithetic": True}, 0.0, 300),
        ("callback", {"curvature": "price"}, 1e-3, 300),  # what clipping does to gradients is undone
        ("callback", {"curvature": "hutchinson"}, 0.0, 40),
    ],
    ids=["price", "normal", "antithetic", "clipped", "hutchinson"],
)
def test_running_curvature_converges_to_the_exact_diagonal(
    method: str, settings: dict[str, Any], clip: float, steps: int, tmp_path: Path
) -> None:
    model = Quadratic()
    found: dict[str, Tensor] = {}

    class Note(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == args.max_steps:
                found.update(engine_of(trainer).tracker.curvature())

    trainer = build(
        method,
        tmp_path,
        NoiseConfig(curvature_decay=1.0, curvature_every=1, eta=1.0, **settings),
        model=model,
        data=Examples({"labels": torch.zeros(4, dtype=torch.int64)}),
        after=(Note(),),
        max_steps=steps,
        learning_rate=0.0,
        max_grad_norm=clip,
        logging_strategy="no",
    )
    trainer.train()
    exact = model.hessian.diagonal()
    value = torch.cat([found["first"], found["second"]])
    assert tiny.relative_error(value, exact) < 0.1
