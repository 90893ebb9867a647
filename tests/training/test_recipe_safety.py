"""What holds for all noise, for every recipe: clean weights afterwards, plain without it, the same after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_runs import SHELLS, Recorder, arguments, bert, difference, llama, losses, make, same, trained, weights
from transformers import Trainer, TrainerCallback

from hf_pacgen.config import NoiseConfig, NoiseRecipe
from hf_pacgen.noise.directions import Held
from hf_pacgen.training.callback.callback import PACGenCallback
from hf_pacgen.training.noise_state import NOISE_FILE

RECIPES = [recipe.value for recipe in NoiseRecipe]


# of those whose size would follow the run, and be 0 in the first pass
SIZES = {"rows": 0.6, "ascent": 0.15}


def config(recipe: str, **changes: Any) -> NoiseConfig:
    settings = {"gamma": 0.0, "epsilon": 0.05, "scale": SIZES.get(recipe), **changes}
    return NoiseConfig(recipe=recipe, **settings)  # type: ignore[arg-type]


def lora(**changes: Any) -> nn.Module:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    settings: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1, **changes}
    model = peft.get_peft_model(llama(), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model  # type: ignore[no-any-return]


def built(recipe: str) -> Any:
    return lora if recipe == "flat-lora" else bert


def ways(recipe: str) -> list[str]:
    return [shell for shell in SHELLS if shell == "trainer" or config(recipe).second_gradient is None]


EVERY = [(recipe, shell) for recipe in RECIPES for shell in ways(recipe)]


@pytest.mark.parametrize(("recipe", "shell"), EVERY)
def test_the_optimizer_alone_moves_the_weights(recipe: str, shell: str) -> None:
    """At a learning rate of 0 they stay what they were, bit for bit, and the losses are not the plain ones."""
    how: dict[str, Any] = {"learning_rate": 0.0, "gradient_accumulation_steps": 2, "max_steps": 3}
    recorder = Recorder()
    model = built(recipe)()
    before = weights(model)
    run = trained(shell, config(recipe), model=model, before=[recorder], **how)
    plain = trained("plain", None, model=built(recipe)(), **how)
    for state in (*recorder.begun, *recorder.ended, weights(model)):
        assert same(state, before)
    assert losses(run)[1:] != losses(plain)[1:]
    # ascents begin with the second step
    assert (losses(run)[0] == losses(plain)[0]) == (recipe == "ascent")


@pytest.mark.parametrize(("recipe", "shell"), EVERY)
def test_without_a_scale_it_is_the_plain_trainer(recipe: str, shell: str) -> None:
    runs = []
    for kind in ("plain", shell):
        run = trained(kind, config(recipe, scale=0.0), model=built(recipe)(), gradient_accumulation_steps=2)
        runs.append((weights(run.model), losses(run), torch.get_rng_state()))
    assert same(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1] and runs[0][2].equal(runs[1][2])


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_exception_in_any_pass_leaves_clean_weights(recipe: str) -> None:
    calls = 0
    while True:
        calls += 1
        left = [calls]

        class Breaks(Trainer):
            def compute_loss(self, model: Any, *args: Any, left: list[int] = left, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
                return super().compute_loss(model, *args, **kwargs)

        recorder, model = Recorder(), built(recipe)()
        run = make("trainer", config(recipe), model=model, trainer=Breaks, before=[recorder], max_steps=2)
        try:
            run.train()
        except KeyboardInterrupt:
            assert same(weights(model), recorder.begun[-1]) and "compute_loss" not in vars(run)
            assert not any("forward" in vars(module) for module in model.modules())
        else:
            break
    # a pass of every gradient, and one more where outputs are looked at first
    passes = {"1": 1, "2": 2, "2 and a forward pass": 3}[NoiseRecipe(recipe).facts.cost]
    assert calls == 2 * passes + 1


CHECKPOINTED = [
    (recipe, reentrant) for recipe in RECIPES for reentrant in (True, False) if recipe not in ("pacgen", "two-point")
]


@pytest.mark.parametrize(("recipe", "reentrant"), CHECKPOINTED)
def test_checkpointing_changes_nothing(recipe: str, reentrant: bool) -> None:
    finals = []
    for how in ({}, {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}):
        model = lora() if recipe == "flat-lora" else llama()
        run = trained("trainer", config(recipe), model=model.double(), max_steps=3, **how)
        finals.append(weights(run.model))
    assert difference(*finals) < 1e-9


@pytest.mark.parametrize("recipe", RECIPES)
def test_under_lora_noise_is_on_one_side_only(recipe: str) -> None:
    """Bases stay what they are, and adapters are trained."""
    model = lora()
    before = weights(model)
    run = trained("trainer", config(recipe), model=model, gradient_accumulation_steps=2)
    after = weights(run.model)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in after if not after[name].equal(before[name])} == trains


@pytest.mark.parametrize(("recipe", "shell"), EVERY)
def test_a_resumed_run_is_the_uninterrupted_one(recipe: str, shell: str, tmp_path: Path) -> None:
    def run(folder: Path, **how: Any) -> Trainer:
        args = arguments(output_dir=str(folder), max_steps=6, save_strategy="steps", save_steps=3)
        return make(shell, config(recipe), model=built(recipe)(), args=args, **how)

    whole = run(tmp_path)
    whole.train()
    resumed = run(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert same(weights(whole.model), weights(resumed.model))


def test_an_ascent_without_its_file_begins_without_a_direction(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = arguments(output_dir=str(tmp_path), max_steps=4, save_strategy="steps", save_steps=2)
    make("trainer", config("ascent"), args=args).train()
    (tmp_path / "checkpoint-2" / NOISE_FILE).unlink()
    make("trainer", config("ascent"), args=args).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert f"has no {NOISE_FILE}: the first step has no direction." in caplog.text


@pytest.mark.parametrize("shell", SHELLS)
def test_a_gradient_that_is_not_finite_gives_no_direction(shell: str) -> None:
    """The step after it is plain, and those after that ascend again."""
    noisy: list[bool] = []

    class Overflows(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.clean = weights(model)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 2:
                next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = torch.inf

        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            pass

    first = Overflows()

    class Looks(Trainer):
        def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            def look(*_: Any) -> None:
                noisy.append(not same(weights(model), first.clean))

            handle = model.classifier.register_forward_pre_hook(look)
            try:
                return super().compute_loss(model, *args, **kwargs)
            finally:
                handle.remove()

    class Skips(TrainerCallback):
        """As a loss scaler does, after all that look at the gradients."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 2:
                model.zero_grad()

    how: dict[str, Any] = {"before": [first], "max_grad_norm": 0.0, "trainer": Looks}
    run = make(shell, config("ascent"), **how)
    run.add_callback(Skips())
    run.train()
    assert noisy == [False, True, True, False, True, True]
    assert all(tensor.isfinite().all() for tensor in weights(run.model).values())


class Scaled(Trainer):
    """Losses are scaled before the backward pass, and gradients unscaled before they are clipped, or by the scaler."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6)

        def unscale(*args: Any) -> None:
            for prepared in self.accelerator._optimizers:
                scaler.unscale_(prepared.optimizer)

        self.accelerator.unscale_gradients = unscale  # type: ignore[method-assign]


@pytest.mark.parametrize("clips", [0.0, 0.1], ids=["not clipped", "clipped"])
@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe != "flat-lora"])
def test_a_loss_scale_changes_nothing(recipe: str, clips: float) -> None:
    finals = []
    for kind in (Trainer, Scaled):
        noise = config(recipe, epsilon=0.02)
        how: dict[str, Any] = {"gradient_accumulation_steps": 2, "optim": "sgd", "max_grad_norm": clips, "max_steps": 4}
        run = trained("trainer", noise, model=bert().double(), trainer=kind, learning_rate=0.1, **how)
        assert (getattr(run.optimizer, "scaler", None) is not None) == (kind is Scaled)
        finals.append(weights(run.model))
    assert difference(*finals) < 1e-9


@pytest.mark.parametrize(("recipe", "other"), [("two-point", {"antithetic": True}), ("pacgen", {})])
def test_a_recipe_is_its_settings_bit_for_bit(recipe: str, other: dict[str, Any]) -> None:
    first, second = (trained("trainer", noise) for noise in (NoiseConfig(recipe=recipe), NoiseConfig(**other)))  # type: ignore[arg-type]
    assert same(weights(first.model), weights(second.model))


def test_both_ways_into_the_trainer_ascend_alike() -> None:
    for recipe in ("rows", "ascent"):
        runs = [trained(shell, config(recipe, draw="step"), max_grad_norm=0.1) for shell in SHELLS]
        assert same(*(weights(run.model) for run in runs)) and losses(runs[0]) == losses(runs[1])


def test_what_is_observed_is_every_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr("hf_pacgen.training.noisy_step.NoisyStep.observe", lambda self, loss: seen.append(loss.item()))
    run = trained("trainer", config("sam"), model=llama(), gradient_accumulation_steps=2, max_steps=3)
    assert [sum(pair) for pair in zip(seen[::2], seen[1::2], strict=True)] == pytest.approx(losses(run), abs=1e-3)


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if config(recipe).second_gradient is not None])
def test_a_callback_refuses_what_it_cannot_ask_for(recipe: str) -> None:
    with pytest.raises(ValueError, match="takes two gradients of every batch, which a callback cannot ask for"):
        PACGenCallback(noise=recipe)


def test_a_compiled_model_has_no_noise_on_frozen_weights() -> None:
    with pytest.raises(ValueError, match=r"inside the products of the model, which torch\.compile would trace once"):
        trained("trainer", config("flat-lora"), model=lora(), torch_compile=True, torch_compile_backend="aot_eager")


def test_weights_loaded_in_the_middle_of_a_step_give_no_direction() -> None:
    held: list[Held] = []

    class Loads(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 2:
                model.load_state_dict(model.state_dict())

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (callback,) = [c for c in run.callback_handler.callbacks if isinstance(c, PACGenCallback)]
            held.append(callback.noisy_step.ascent.held)  # type: ignore[union-attr]

    run = make("callback", config("ascent"), callbacks=[Loads()], gradient_accumulation_steps=2, max_steps=4)
    run.train()
    assert held == [Held.GRADIENT, Held.GRADIENT, Held.NOTHING, Held.GRADIENT]
