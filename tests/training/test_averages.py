"""A moving average of the weights: what it is, who sees it, and what comes back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from training_runs import SHELLS, Sentences, arguments, bert, difference, losses, same, weights
from transformers import Trainer, TrainerCallback

from hf_pacgen import PACGenCallback, PACGenTrainer, PACGenTrainingArguments
from hf_pacgen.training.averages import AVERAGE_FILE, WeightAverage, check_decay

DECAY = 0.7
NOISES: dict[str, Any] = {"no noise": None, "noise": {"epsilon": 0.02}}


class Steps(TrainerCallback):
    """The weights after every optimizer step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.seen.append(weights(model))


def made(shell: str, *, noise: Any = None, ema: float | None = DECAY, evaluate_ema: bool = True, **changes: Any) -> Any:
    """A Trainer with an average, and with eval_dataset."""
    data: dict[str, Any] = {"train_dataset": Sentences(), "eval_dataset": Sentences(16, seed=1)}
    how: dict[str, Any] = {"ema": ema, "evaluate_ema": evaluate_ema}
    args = arguments(gradient_accumulation_steps=2, learning_rate=1e-2, **changes)
    if shell == "trainer":
        trainer: Trainer = PACGenTrainer(bert(), args, noise=noise, **how, **data)
    else:
        trainer = Trainer(bert(), args, callbacks=[PACGenCallback(noise=noise, **how)], **data)
    trainer.add_callback(Steps())
    return trainer


def seen(trainer: Any) -> list[dict[str, Tensor]]:
    return next(c.seen for c in trainer.callback_handler.callbacks if isinstance(c, Steps))


def by_hand(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    average = {name: value.double() for name, value in states[0].items()}
    for state in states[1:]:
        average = {name: DECAY * value + (1 - DECAY) * state[name].double() for name, value in average.items()}
    return average


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("shell", SHELLS)
def test_it_is_that_of_the_weights_after_each_step(shell: str, noise: str) -> None:
    """And the training is the same as without it, bit for bit, though it evaluates in between."""
    trainer = made(shell, noise=NOISES[noise], eval_strategy="steps", eval_steps=2)
    trainer.train()
    assert difference(weights(trainer.model), by_hand(seen(trainer))) < 1e-6
    without = made(shell, noise=NOISES[noise], ema=None, eval_strategy="steps", eval_steps=2)
    without.train()
    assert all(same(*pair) for pair in zip(seen(trainer), seen(without), strict=True))
    assert losses(trainer) == losses(without)
    assert difference(weights(trainer.model), weights(without.model)) > 1e-4
    # the Trainer is left as it was
    assert not {"evaluate", "_save_checkpoint", "_save_optimizer_and_scheduler"} & vars(trainer).keys()


@pytest.mark.parametrize("shell", SHELLS)
def test_evaluations_and_checkpoints_are_of_it(shell: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    trainer = made(shell, output_dir=str(tmp_path), **how)
    trainer.train()
    average = by_hand(seen(trainer)[:3])
    saved = safetensors.torch.load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert max((saved[name] - value).abs().max().item() for name, value in average.items() if name in saved) < 1e-6
    other = Trainer(bert(), arguments(), eval_dataset=Sentences(16, seed=1))
    other.model.load_state_dict({name: value.float() for name, value in average.items()}, strict=False)
    found = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert found[0] == pytest.approx(other.evaluate()["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("shell", SHELLS)
def test_a_resumed_training_goes_on_with_both(shell: str, noise: str, tmp_path: Path) -> None:
    whole = made(shell, noise=NOISES[noise], output_dir=str(tmp_path), save_strategy="steps", save_steps=3)
    whole.train()
    again = made(shell, noise=NOISES[noise], output_dir=str(tmp_path))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert same(weights(again.model), weights(whole.model)) and same(seen(again)[-1], seen(whole)[-1])


def test_the_best_checkpoint_stays_loaded(tmp_path: Path) -> None:
    how: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = made("trainer", output_dir=str(tmp_path), load_best_model_at_end=True, max_steps=4, **how)
    trainer.train()
    saved = safetensors.torch.load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in weights(trainer.model).items() if name in saved)


def test_the_trained_weights_can_be_evaluated_instead() -> None:
    trainer = made("trainer", evaluate_ema=False, eval_strategy="steps", eval_steps=3)
    with pytest.raises(ValueError, match=r"There is no average of the weights: pass ema=0.99"):
        trainer.averaged_weights()
    trainer.train()
    assert same(weights(trainer.model), seen(trainer)[-1])
    with trainer.averaged_weights():
        inside = weights(trainer.model)
    assert difference(inside, by_hand(seen(trainer))) < 1e-6 and same(weights(trainer.model), seen(trainer)[-1])


def test_the_weights_come_back_after_an_exception() -> None:
    class Breaks(TrainerCallback):
        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    trainer = made("trainer", eval_strategy="steps", eval_steps=3)
    trainer.add_callback(Breaks())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert same(weights(trainer.model), seen(trainer)[-1]) and "evaluate" not in vars(trainer)


def test_weights_of_16_bits_have_an_average_of_32() -> None:
    model = nn.Linear(3, 2).bfloat16()
    average = WeightAverage(model, 0.9)
    states = []
    for _ in range(50):
        with torch.no_grad():
            model.weight.add_(torch.full_like(model.weight, 2.0**-6))
        states.append(model.weight.detach().double().clone())
        average.update()
    expected = states[0]
    for state in states[1:]:
        expected = 0.9 * expected + 0.1 * state
    assert average.average["weight"].dtype is torch.float32
    assert (average.average["weight"].double() - expected).abs().max() < 1e-6
    before = copy.deepcopy(model.weight)
    with average.on(), average.on():
        assert torch.equal(model.weight, expected.bfloat16())
    assert torch.equal(model.weight, before)


def test_arguments_have_it_too(tmp_path: Path) -> None:
    args = arguments(PACGenTrainingArguments, ema=0.5, evaluate_ema=False)
    trainer = PACGenTrainer(bert(), args, train_dataset=Sentences())
    assert trainer.ema == 0.5 and trainer.evaluate_ema is False
    assert PACGenTrainer(bert(), args, train_dataset=Sentences(), ema=0.9).ema == 0.9


@pytest.mark.parametrize(
    ("decay", "message"),
    [(1, "less than 1; got 1"), (-0.1, "ema must be a finite number"), ("x", "ema must be"), (True, "ema must be")],
)
def test_decays_are_numbers_below_1(decay: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_decay(decay)


def test_a_batch_size_that_was_too_large_leaves_no_second_average() -> None:
    """The training begins twice then, in one call of train()."""

    class TooLarge(PACGenTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if self._train_batch_size > 2 and self.state.global_step == 2:
                raise RuntimeError("CUDA out of memory.")
            return super().training_step(*args, **kwargs)

    how: dict[str, Any] = {"auto_find_batch_size": True, "per_device_train_batch_size": 8, "eval_strategy": "steps"}
    args = arguments(learning_rate=1e-2, max_steps=4, eval_steps=4, **how)
    trainer = TooLarge(bert(), args, train_dataset=Sentences(), eval_dataset=Sentences(16, seed=1), ema=DECAY)
    steps = Steps()
    trainer.add_callback(steps)
    trainer.train()
    assert trainer._train_batch_size <= 2 and not {"evaluate", "_save_checkpoint"} & vars(trainer).keys()
    assert difference(weights(trainer.model), by_hand(steps.seen[-4:])) < 1e-6
    # what was evaluated last is what is in the model now
    found = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(found, rel=1e-6)


def test_weights_that_are_unfrozen_later_have_an_average_too() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    average = WeightAverage(model, 0.5)
    average.update()
    model.bias.requires_grad_(True)
    average.update()
    with torch.no_grad():
        model.bias.add_(1.0)
    average.update()
    assert torch.allclose(average.average["bias"], model.bias - 0.5)


def test_an_own_setting_goes_before_that_of_the_arguments() -> None:
    args = arguments(PACGenTrainingArguments, ema=0.5)
    trainer = PACGenTrainer(bert(), args, train_dataset=Sentences(), evaluate_ema=False)
    assert trainer.ema == 0.5 and trainer.evaluate_ema is False
    for kind in (lambda: PACGenCallback(ema=0.5, evaluate_ema="no"), lambda: made("trainer", evaluate_ema="no")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="evaluate_ema must be True or False; got 'no'"):
            kind()


def test_two_averages_are_refused() -> None:
    with pytest.raises(ValueError, match="PACGenTrainer and a PACGenCallback both have ema"):
        PACGenTrainer(bert(), arguments(), train_dataset=Sentences(), ema=0.9, callbacks=[PACGenCallback(ema=0.9)])


def test_a_callback_needs_its_trainer() -> None:
    with pytest.raises(ValueError, match=r"this PACGenCallback could not find it\. Let a transformers Trainer call it"):
        state: Any = type("State", (), {"global_step": 0, "max_steps": 1})()
        PACGenCallback(ema=0.9).on_train_begin(arguments(), state, None, model=bert(), optimizer=None)


def test_sharded_weights_are_refused() -> None:
    model = nn.Linear(1, 1)
    model.weight.ds_id = 0  # type: ignore[attr-defined]  # the mark of ZeRO-3
    with pytest.raises(ValueError, match=r"ema averages whole weights, and 'weight' is sharded over processes"):
        WeightAverage(model, 0.9)


def test_files_that_do_not_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    average = WeightAverage(nn.Linear(2, 2), 0.9)
    average.load(tmp_path)
    assert f"has no {AVERAGE_FILE}: the average of the weights starts anew." in caplog.text
    average.save(tmp_path, dict(average.weights))
    with pytest.raises(ValueError, match="is the average of other trainable weights"):
        WeightAverage(nn.Linear(3, 2), 0.9).load(tmp_path)
    with pytest.raises(ValueError, match=r"other trainable weights \(different: \['average.bias', 'trained.bias'\]\)"):
        WeightAverage(nn.Linear(2, 2, bias=False), 0.9).load(tmp_path)
    file = tmp_path / AVERAGE_FILE
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"The file is cut short or damaged\. Resume from another checkpoint"):
        average.load(tmp_path)
