"""Clean weights after whatever may happen: exceptions, interrupts, saves and evaluations from any hook."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from training_runs import SHELLS, Recorder, Sentences, bert, difference, make, same, trained, weights
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from hf_pacgen.config import NoiseConfig

NOISE = NoiseConfig(curvature_every=2)


class Trouble(Trainer):
    """A Trainer in which something fails in the micro-batch number ``at``."""

    where = "forward"
    at = 5
    error: type[BaseException] = RuntimeError
    count = 0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.count == self.at and self.where == "forward":
            raise self.error("trouble in forward")
        if self.count == self.at and self.where == "backward":
            loss.register_hook(self._fail)
        return loss

    def _fail(self, gradient: Tensor) -> None:
        raise self.error("trouble in backward")


def troubled(where: str, error: type[BaseException] = RuntimeError) -> type[Trainer]:
    return type("Troubled", (Trouble,), {"where": where, "error": error})


def run_into_trouble(shell: str, kind: type[Trainer], error: type[BaseException], **settings: Any) -> Any:
    recorder = Recorder()
    run = make(shell, NOISE, trainer=kind, before=[recorder], **settings)
    if kind.where == "optimizer":  # type: ignore[attr-defined]
        run.create_optimizer()
        step = run.optimizer.step
        calls = iter(range(100))
        run.optimizer.step = lambda *a, **k: _fail_at_five(next(calls), step, a, k)  # type: ignore[method-assign]
    with pytest.raises(error, match="trouble"):
        run.train()
    return run, recorder.begun[-1]


def _fail_at_five(call: int, step: Any, args: Any, kwargs: Any) -> Any:
    if call == 4:
        raise RuntimeError("trouble in the optimizer")
    return step(*args, **kwargs)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("where", ["forward", "backward", "optimizer"])
def test_an_exception_leaves_the_weights_the_step_began_with(shell: str, where: str) -> None:
    run, clean = run_into_trouble(shell, troubled(where), RuntimeError)
    if shell == "trainer":
        assert same(weights(run.model), clean)  # even before the first use
    found = run.model.state_dict()
    assert all(found[name].equal(tensor) for name, tensor in clean.items())
    assert same(weights(run.model), clean)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_after_an_exception_the_first_forward_pass_is_clean(shell: str, mode: str) -> None:
    run, clean = run_into_trouble(shell, troubled("backward"), RuntimeError, model=bert(dropout=0.0))
    reference = bert(dropout=0.0)
    reference.load_state_dict(clean, strict=False)
    batch = {"input_ids": Sentences().tokens[:4]}
    getattr(run.model, mode)(), getattr(reference, mode)()
    assert run.model(**batch).logits.equal(reference(**batch).logits) and same(weights(run.model), clean)


@pytest.mark.parametrize("shell", SHELLS)
def test_an_interrupt_in_the_midst_of_accumulation(shell: str) -> None:
    kind = troubled("forward", KeyboardInterrupt)  # the fifth micro-batch, the second of its step
    run, clean = run_into_trouble(shell, kind, KeyboardInterrupt, gradient_accumulation_steps=3)
    run.model.state_dict()
    assert same(weights(run.model), clean)


@pytest.mark.parametrize("shell", SHELLS)
def test_training_goes_on_after_an_exception(shell: str) -> None:
    run, clean = run_into_trouble(shell, troubled("forward"), RuntimeError)
    recorder = Recorder()
    run.callback_handler.callbacks.insert(0, recorder)
    run.train()
    assert same(recorder.begun[0], clean) and same(recorder.ended[-1], weights(run.model))


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


@pytest.mark.parametrize("order", ["before", "callbacks"])
@pytest.mark.parametrize("shell", SHELLS)
def test_every_save_is_clean_and_changes_nothing(shell: str, order: str) -> None:
    settings: dict[str, Any] = {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    recorder, saver = Recorder(), Saver()
    reference = trained(shell, NOISE, before=[recorder], **settings)
    run = trained(shell, NOISE, **{order: [saver]}, **settings)
    assert same(weights(reference.model), weights(run.model))
    trajectory = [*recorder.begun, recorder.ended[-1]]
    assert {event for event, _, _ in saver.found} == set(EVENTS)
    for event, step, state in saver.found:
        clean = trajectory[step + (event == "on_optimizer_step")]
        assert all(state[name].equal(tensor) for name, tensor in clean.items()), (event, step)


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


def test_an_evaluation_in_the_midst_of_a_step_is_clean_and_changes_nothing() -> None:
    """The callback's noise is on in every on_substep_end."""
    settings: dict[str, Any] = {"gradient_accumulation_steps": 2, "model": bert(dropout=0.0)}
    batch = {"input_ids": Sentences().tokens[:4]}

    def evaluate(model: Any) -> Tensor:
        model.eval()
        logits = model(**batch).logits
        model.train()
        return logits

    recorder, saver = Recorder(), Saver(evaluate)
    run = trained("callback", NOISE, before=[recorder, saver], **settings)
    reference, copied = bert(dropout=0.0).eval(), 0
    for event, step, logits in saver.found:
        if event == "on_substep_end":
            reference.load_state_dict(recorder.begun[step])
            copied += logits.equal(reference(**batch).logits)
    assert copied == run.state.global_step
    again = trained("callback", NOISE, **{**settings, "model": bert(dropout=0.0)})
    assert same(weights(again.model), weights(run.model))


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


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("end", ["early stopping", "max_steps in an epoch", "epochs"])
def test_the_end_of_training_leaves_the_model_as_it_was_found(shell: str, end: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "early stopping": {
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "metric_for_best_model": "eval_loss",
            "load_best_model_at_end": False,
            "callbacks": [EarlyStoppingCallback(1)],
            "learning_rate": 0.5,
            "max_steps": 50,
            "output_dir": str(tmp_path),
        },
        "max_steps in an epoch": {"max_steps": 3},
        "epochs": {"max_steps": -1, "num_train_epochs": 1},
    }[end]
    recorder, model = Recorder(), bert()
    pointers = [p.data_ptr() for p in model.parameters()]
    hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
    run = trained(shell, NOISE, model=model, before=[recorder], **settings)
    assert same(weights(model), recorder.ended[-1]) and [p.data_ptr() for p in model.parameters()] == pointers
    assert hooks == sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
    assert not any(m._state_dict_pre_hooks for m in model.modules())
    assert not any(getattr(p, "_post_accumulate_grad_hooks", None) for p in model.parameters())
    assert run.state.global_step < 50


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
