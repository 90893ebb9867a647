"""Clean weights after whatever may happen: exceptions, interrupts, saves and evaluations from any hook."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import SHELLS, Recorder, Sentences, arguments, bert, difference, make, same, trained, weights
from transformers import TrainerCallback
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from hf_pacgen.config import NoiseConfig
from hf_pacgen.training.trainer import PACGenTrainer

NOISE = NoiseConfig(curvature_every=2)


EVENTS = (
    "on_step_begin on_substep_end on_pre_optimizer_step on_optimizer_step on_step_end on_log on_evaluate on_epoch_end"
).split()


class Saver(TrainerCallback):
    """Takes a state dict in every hook, or does something else with the model there."""

    def __init__(self, act: Any = None) -> None:
        self.found: list[tuple[str, int, Any]] = []
        self.act = act or (lambda model: {n: t.clone() for n, t in model.state_dict().items()})
        for event in EVENTS:
            setattr(self, event, self._make(event))

    def _make(self, event: str) -> Any:
        def hook(args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.found.append((event, state.global_step, self.act(model)))

        return hook


@pytest.mark.parametrize("shell", SHELLS)
def test_a_state_dict_of_parameters_or_of_a_part_is_clean_too(shell: str) -> None:
    recorder = Recorder()
    trained(shell, NOISE, before=[recorder])
    clean = recorder.begun
    for act in (
        lambda model: {n: p.detach().clone() for n, p in model.state_dict(keep_vars=True).items()},
        lambda model: {f"bert.{n}": t.clone() for n, t in model.bert.state_dict().items()},
    ):
        saver = Saver(act)
        trained(shell, NOISE, callbacks=[saver])
        for event, step, state in saver.found:
            if event == "on_pre_optimizer_step":
                assert all(tensor.equal(clean[step][name]) for name, tensor in state.items() if name in clean[step])


@pytest.mark.parametrize("last", [False, True], ids=["before the noise", "after the noise"])
@pytest.mark.parametrize("event", ["on_step_begin", "on_pre_optimizer_step"])
@pytest.mark.parametrize("shell", SHELLS)
def test_checkpoints_on_sigterm_are_clean(shell: str, event: str, last: bool, tmp_path: Path) -> None:
    class Terminate(TrainerCallback):
        """Asks for a checkpoint as the signal handler does, a few seconds after the signal."""

        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3 and event == "on_pre_optimizer_step":
                manager.is_checkpoint_requested = True

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3 and event == "on_step_begin":
                manager.is_checkpoint_requested = True

    recorder = Recorder()
    run = make(
        shell,
        NOISE,
        before=[recorder],
        callbacks=[Terminate()],
        enable_jit_checkpoint=True,
        gradient_accumulation_steps=2,
        output_dir=str(tmp_path),
    )
    handlers = run.callback_handler.callbacks
    (saver,) = [callback for callback in handlers if isinstance(callback, JITCheckpointCallback)]
    manager: Any = saver.jit_manager
    if last:
        handlers.append(handlers.pop(handlers.index(saver)))
    run.train()
    saved = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert all(saved[name].equal(tensor) for name, tensor in recorder.begun[3].items())
    # on_step_begin's request ends the training in the midst of the step, on_pre_optimizer_step's after it
    last_step = recorder.begun[3] if event == "on_step_begin" else recorder.ended[3]
    assert len(recorder.begun) == 4 and same(weights(run.model), last_step)


def test_a_copy_of_the_model_made_in_training_works() -> None:
    copies: list[Any] = []

    def act(model: Any) -> None:
        copies.extend([copy.deepcopy(model), pickle.loads(pickle.dumps(model))])

    saver = Saver(act)
    saver.on_substep_end = saver.on_pre_optimizer_step = lambda *a, **k: None  # type: ignore[attr-defined]
    run = trained("callback", NOISE, before=[saver], max_steps=2)
    for model in copies:
        model(input_ids=Sentences().tokens[:4])
        model.state_dict()
    assert difference(weights(copies[0]), weights(run.model)) < 0.1


def test_a_training_step_called_by_hand_is_clean() -> None:
    run: Any = make("trainer", NOISE)
    run.current_gradient_accumulation_steps = 1  # which the plain Trainer's training_step needs as well
    before = weights(run.model)
    batch = next(iter(run.get_train_dataloader()))
    first, second = (run.training_step(run.model, dict(batch)) for _ in range(2))
    assert same(weights(run.model), before) and first.isfinite() and first != second


def test_weights_that_moved_are_followed_and_weights_that_changed_refused() -> None:
    class Move(TrainerCallback):
        def __init__(self, change: Any) -> None:
            self.change = change

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 2:
                for parameter in model.parameters():
                    parameter.data = self.change(parameter.data)

    plain = trained("trainer", NOISE)
    moved = trained("trainer", NOISE, callbacks=[Move(torch.clone)])
    assert same(weights(plain.model), weights(moved.model))
    with pytest.raises(
        RuntimeError, match=r"torch.float32 on cpu when noise was set up and is .*float64.* before training"
    ):
        trained("trainer", NOISE, callbacks=[Move(lambda data: data.double())], optim="sgd")


@pytest.mark.parametrize("without", [None, NoiseConfig(scale=0.0)], ids=["none", "scale 0"])
def test_noise_can_be_taken_away_in_the_middle(without: NoiseConfig | None) -> None:
    trainer = PACGenTrainer(bert(), arguments(max_steps=5), train_dataset=Sentences(40), noise=NoiseConfig())
    noisy: list[bool] = []

    def look(*_: Any) -> None:
        assert trainer._noisy_step is not None
        noisy.append(trainer._noisy_step.noise.applied)

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                trainer.noise = without

    trainer.add_callback(Stop())
    model: Any = trainer.model
    model.classifier.register_forward_hook(look)
    trainer.train()
    assert noisy == [True] * 3 + [False] * 2
