"""After an interrupt, and where other code takes a hand in the weights: nothing is lost and no noise stays."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from training_runs import Sentences, arguments, difference, llama, same, weights
from transformers import Trainer, TrainerCallback

from hf_pacgen import NoiseConfig, PACGenCallback, PACGenTrainer

NOISE = NoiseConfig(shape="isotropic", scale=0.05)
DATA = Sentences(causal=True)
TOKENS = torch.ones(1, 3, dtype=torch.long)
SHELLS = ["callback", "trainer"]


def shell(kind: str, model: nn.Module, noise: NoiseConfig = NOISE, data: Any = DATA, **how: Any) -> Trainer:
    """A Trainer with noise by a callback, or by being one of ours."""
    extra: dict[str, Any] = {k: how.pop(k) for k in ("optimizers", "compute_loss_func") if k in how}
    callbacks = how.pop("callbacks", [])
    args = arguments(**how)
    if kind == "plain":
        return Trainer(model, args, train_dataset=data, callbacks=callbacks, **extra)
    if kind == "callback":
        return Trainer(model, args, train_dataset=data, callbacks=[PACGenCallback(noise=noise), *callbacks], **extra)
    return PACGenTrainer(model, args, train_dataset=data, noise=noise, callbacks=callbacks, **extra)


def interrupted(model: nn.Module) -> Trainer:
    """What is left of a training by callback that stopped inside its first pass: the noise is on the weights."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    class Stops(Trainer):
        def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            handle = list(model.modules())[-1].register_forward_pre_hook(stop)
            try:
                return super().compute_loss(model, *args, **kwargs)
            finally:
                handle.remove()

    before = weights(model)
    trainer = Stops(model, arguments(), train_dataset=DATA, callbacks=[PACGenCallback(noise=NOISE)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert difference(weights(model), before) > 0.01
    return trainer


@pytest.mark.parametrize("kind", SHELLS)
def test_a_new_training_begins_at_the_clean_weights(kind: str) -> None:
    model = llama()
    before = weights(model)
    first = interrupted(model)
    shell(kind, model, learning_rate=0.0).train()
    assert same(weights(model), before)
    assert not any(module._forward_pre_hooks for module in model.modules())
    del first


USES: dict[str, Callable[[Any], Any]] = {
    "a part": lambda model: model.model(input_ids=TOKENS),
    "a copy": copy.deepcopy,
    "a pickle": lambda model: torch.save(model, io.BytesIO()),
}


@pytest.mark.parametrize("use", USES)
def test_the_first_use_finds_clean_weights(use: str) -> None:
    model = llama()
    before = weights(model)
    interrupted(model)
    found = USES[use](model)
    assert same(weights(model), before)
    if use == "a copy":
        assert same(weights(found), before)
        found(input_ids=TOKENS)


def adapted() -> Any:
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    return model


def test_an_adapter_generates_with_clean_weights() -> None:
    model = adapted()
    before = weights(model)
    interrupted(model)
    model.generate(input_ids=TOKENS, max_new_tokens=1, pad_token_id=0)
    assert same(weights(model), before)


def test_an_adapter_that_generates_inside_a_step_has_clean_weights_there() -> None:
    model = adapted()
    found: list[dict[str, Tensor]] = []

    class Generates(TrainerCallback):
        def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
            handle = model.base_model.model.model.register_forward_hook(lambda *_: found.append(weights(model)))
            model.eval()
            model.generate(input_ids=TOKENS, max_new_tokens=1, pad_token_id=0)
            model.train()
            handle.remove()

    noisy: list[float] = []
    handle = model.register_forward_hook(lambda *_: noisy.append(difference(weights(model), before)))
    before = weights(model)
    how: dict[str, Any] = {"learning_rate": 0.0, "gradient_accumulation_steps": 2, "callbacks": [Generates()]}
    shell("callback", model, **how).train()
    handle.remove()
    assert found and all(same(one, before) for one in found)
    assert len(noisy) == 12 and min(noisy) > 0.01  # and the training had its noise all the time


def test_what_is_done_to_the_model_after_an_interrupt_stays() -> None:
    model = llama()
    before = weights(model)
    other = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    interrupted(model)
    model.load_state_dict(other)
    model(input_ids=TOKENS)
    assert same(weights(model), {name: tensor + 1 for name, tensor in before.items()})

    model = llama()
    interrupted(model)
    model.double()
    model(input_ids=TOKENS)
    assert same(weights(model), {name: tensor.double() for name, tensor in before.items()})

    model = llama()
    interrupted(model)
    nn.init.zeros_(model.model.norm.weight)
    model(input_ids=TOKENS)
    changed = weights(model)
    assert not changed.pop("model.norm.weight").any()
    assert same(changed, {name: tensor for name, tensor in before.items() if name in changed})


@pytest.mark.parametrize("kind", SHELLS)
def test_weights_that_are_loaded_inside_a_step_stay(kind: str) -> None:
    model = llama()
    before = weights(model)
    saved = {name: tensor + 1 for name, tensor in model.state_dict().items()}

    class Loads(TrainerCallback):
        def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
            model.load_state_dict(saved)

    noise = NoiseConfig(epsilon=0.05)
    how: dict[str, Any] = {"learning_rate": 0.0, "gradient_accumulation_steps": 2, "callbacks": [Loads()]}
    shell(kind, model, noise, **how).train()
    assert same(weights(model), {name: tensor + 1 for name, tensor in before.items()})


class ScheduleFree(torch.optim.SGD):
    """Gradient steps at y, evaluation at x, as schedule-free optimizers have it."""

    training = False

    def _move(self, share: float) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("z", p.detach().clone())
                p.data.lerp_(state["z"], share)

    def train(self) -> None:
        if not self.training:
            self._move(0.5)
        self.training = True

    def eval(self) -> None:
        if self.training:
            self._move(-1.0)
        self.training = False


@pytest.mark.parametrize("kind", SHELLS)
def test_an_optimizer_that_moves_the_weights_between_training_and_evaluation(kind: str) -> None:
    def run(kind: str) -> dict[str, Tensor]:
        model = llama()
        optimizer = ScheduleFree(model.parameters(), lr=0.5)
        quiet = NoiseConfig(shape="isotropic", scale=1e-9)
        trainer = shell(kind, model, quiet, max_steps=6, optimizers=(optimizer, None))
        trainer.args.eval_strategy, trainer.eval_dataset = "steps", DATA
        trainer.args.eval_steps = trainer.state.eval_steps = 2
        trainer.train()
        return weights(model)

    assert difference(run(kind), run("plain")) < 1e-5


def test_a_loss_that_is_set_on_the_trainer_stays_with_antithetic_noise() -> None:
    noise = NoiseConfig(shape="isotropic", scale=0.05, antithetic=True)
    trainer = shell("trainer", llama(), noise)
    calls = []

    def loss(model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        calls.append(1)
        return model(**inputs).loss

    trainer.compute_loss = loss  # type: ignore[method-assign]
    trainer.train()
    assert len(calls) == 12 and trainer.compute_loss is loss


class Twice(nn.Module):
    """An embedding whose matrix the module also multiplies with by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(64, 64)
        self.seen: list[Tensor] = []

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.seen.append(self.embedding.weight.detach().clone())
        scores = nn.functional.linear(self.embedding(input_ids), self.embedding.weight)
        return {"loss": nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten()), "logits": scores}


@pytest.mark.parametrize("kind", SHELLS)
def test_an_embedding_that_is_used_elsewhere_too_has_noise_there(kind: str, tmp_path: Path) -> None:
    noise = NoiseConfig(epsilon=0.05, eta=1e9, curvature_every=1)
    model = Twice()
    trainer = shell(kind, model, noise, output_dir=str(tmp_path), save_strategy="steps", save_steps=3)
    before = model.embedding.weight.detach().clone()
    trainer.train()
    assert len(model.seen) == 6 and all((seen - before).abs().max() > 0.001 for seen in model.seen)
    resumed = Twice()
    shell(kind, resumed, noise, output_dir=str(tmp_path)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert same(weights(resumed), weights(model))


def test_adams_moments_are_corrected_by_its_own_count() -> None:
    model = llama()
    noise = NoiseConfig(curvature="adam")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    divisors = []

    class Looks(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            divisors.append(trainer._noisy_step.tracker._adam_divisor)

    for _ in range(2):
        trainer: Any = shell("trainer", model, noise, optimizers=(optimizer, None), max_steps=10, callbacks=[Looks()])
        trainer.train()
    # the second training begins where the first left the optimizer: after 10 steps, not after 0
    assert divisors[10] == pytest.approx((1 - 0.999**10) / 4, rel=1e-3)
    assert divisors[9] == pytest.approx((1 - 0.999**9) / 4, rel=1e-3)


@pytest.mark.parametrize("kind", SHELLS)
@pytest.mark.parametrize("form", [str, Path], ids=["str", "Path"])
def test_a_resumed_training_takes_the_state_it_was_told_to_take(kind: str, form: Any, tmp_path: Path) -> None:
    noise = NoiseConfig(epsilon=0.02, eta=1e9, curvature_every=1)
    save: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    model = llama()
    shell(kind, model, noise, output_dir=str(tmp_path / "here"), **save).train()
    (tmp_path / "here" / "checkpoint-3").rename(tmp_path / "kept")
    # where it lay is another run's by now
    shell(kind, llama(seed=1), noise, output_dir=str(tmp_path / "here"), max_steps=3, **save).train()
    again = llama()
    trainer = shell(kind, again, noise, output_dir=str(tmp_path / "here"))
    trainer.train(resume_from_checkpoint=form(tmp_path / "kept"))
    assert same(weights(again), weights(model))


class Sparse(nn.Module):
    def __init__(self, count: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(count, 16, sparse=True), nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.head(self.embedding(input_ids).mean(1)), labels)}


def test_sparse_gradients() -> None:
    def train(sparse: bool) -> dict[str, Tensor]:
        model = Sparse()
        model.embedding.sparse = sparse
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        noise = NoiseConfig(epsilon=0.05, curvature_every=1)
        trainer = shell("callback", model, noise, Sentences(), max_grad_norm=0.0, optimizers=(optimizer, None))
        trainer._get_grad_norm = lambda *_, **__: None  # some versions of transformers have none of sparse gradients
        trainer.train()
        return weights(model)

    assert difference(train(True), train(False)) < 1e-6
