"""What training estimates on batches of its data."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from training_runs import Sentences, arguments, difference, llama, weights
from transformers import Trainer, TrainerCallback

from hf_pacgen import NoiseConfig, PACGenCallback, PACGenTrainer, ScoreConfig

NOISE = NoiseConfig(shape="isotropic", scale=0.05)


DATA = Sentences(causal=True)


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


class Once(IterableDataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        self.examples = iter([DATA[i] for i in range(40)])

    def __iter__(self) -> Any:
        return self.examples


@pytest.mark.parametrize("settings", [{"curvature": "hutchinson"}, {"rho": "estimate"}])
def test_estimates_do_not_eat_a_stream(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"can be gone through only once.*Use curvature='price' and a number for rho"):
        shell("trainer", llama(), NoiseConfig(eta=40, **settings), Once()).train()


def test_a_stream_needs_no_eta_for_shapes_without() -> None:
    model = llama()
    shell("callback", model, NOISE, Once()).train()
    assert difference(weights(model), weights(llama())) > 0


class Goes(IterableDataset[dict[str, Tensor]]):
    """Its ``__iter__`` is a generator, over what is left of a stored iterator."""

    def __init__(self) -> None:
        self.examples = iter([DATA[i] for i in range(40)])

    def __iter__(self) -> Any:
        yield from self.examples


@pytest.mark.parametrize("kind", ["trainer", "callback"])
def test_a_stream_that_hides_that_it_is_used_up_is_found(kind: str) -> None:
    with pytest.raises(ValueError, match=r"can be gone through only once.*Use curvature='price' and a number for rho"):
        shell(kind, llama(), NoiseConfig(eta=40, curvature="hutchinson"), Goes()).train()


class Sparse(Sentences):
    """One row in ten has labels."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = super().__getitem__(index)
        return row if index % 10 == 3 else row | {"labels": torch.full_like(row["labels"], -100)}


class Unlabeled(Sparse):
    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            key: torch.full_like(t, -100) if key == "labels" else t for key, t in super().__getitem__(index).items()
        }


@pytest.mark.parametrize("settings", [{"curvature": "hutchinson", "curvature_every": 1}, {"rho": "estimate"}])
@pytest.mark.parametrize("kind", ["trainer", "callback"])
def test_batches_without_labels_are_drawn_again(kind: str, settings: dict[str, Any]) -> None:
    how: Any = {"per_device_train_batch_size": 2, "max_steps": 4}
    noise = NoiseConfig(eta=40, **settings)
    shell(kind, llama(), noise, Sparse(40, causal=True), **how).train()
    with pytest.raises(ValueError, match="All labels of the data are -100"):
        shell(kind, llama(), noise, Unlabeled(40, causal=True), **how).train()


class Thaws(TrainerCallback):
    """Unfreezes one layer and freezes another in the middle of a training."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 2:
            model.model.layers[0].requires_grad_(True)
            model.model.layers[1].requires_grad_(False)


@pytest.mark.parametrize("kind", ["trainer", "callback"])
def test_noise_is_on_what_is_trainable_in_a_step(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model: Any = llama()
    model.model.layers[0].requires_grad_(False)
    seen: list[dict[str, bool]] = []
    clean = weights(model)

    def look(module: nn.Module, args: Any) -> None:
        if module.training:
            seen.append({n: not p.equal(clean[n]) for n, p in model.named_parameters() if "layers" in n})

    model.model.norm.register_forward_pre_hook(look)
    run = shell("plain", model, max_steps=4, learning_rate=0.0)
    thaws = Thaws()
    if kind == "trainer":
        run = PACGenTrainer(model, run.args, train_dataset=DATA, noise=NOISE, callbacks=[thaws])
    else:
        run = Trainer(model, run.args, train_dataset=DATA, callbacks=[thaws, PACGenCallback(noise=NOISE)])
    with caplog.at_level(logging.WARNING):
        run.train()
    assert "Parameters were frozen or unfrozen in the middle of the training" in caplog.text
    for step, moved in enumerate(seen):
        for name, noisy in moved.items():
            assert noisy == (f"layers.{int(step < 2)}." in name), (step, name)


@pytest.mark.parametrize("kind", ["trainer", "callback"])
def test_the_batch_size_that_fits_is_the_one_that_counts(kind: str) -> None:
    """``auto_find_batch_size`` halves it, and a mean square of gradients is of so many examples."""
    model: Any = llama()
    found: list[int] = []

    def memory(module: nn.Module, args: Any, kwargs: Any) -> None:
        if len(kwargs["input_ids"]) > 4:
            raise RuntimeError("CUDA out of memory. (not really)")

    model.register_forward_pre_hook(memory, with_kwargs=True)

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step = getattr(run, "_noisy_step", None) or next(
                c.noisy_step for c in run.callback_handler.callbacks if isinstance(c, PACGenCallback)
            )
            found.append(step.run.examples_per_step)

    noise = NoiseConfig(curvature="adam", eta=40)  # type: ignore[arg-type]
    how: Any = {"auto_find_batch_size": True, "per_device_train_batch_size": 16, "max_steps": 2}
    run = shell(kind, model, noise, callbacks=[Look()], **how)
    run.train()
    assert found[-1] == 4


def test_what_a_score_cannot_take_is_refused_before_the_training() -> None:
    """With a remedy that can be followed from a callback."""

    class Odd(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            if not model.training:
                raise KeyError("old_logps")
            return super().compute_loss(model, inputs, return_outputs, **kwargs)

    began: list[int] = []

    class Began(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            began.append(state.global_step)

    for data in (DATA, Goes()):
        callbacks = [PACGenCallback(score=ScoreConfig(max_examples=8)), Began()]
        trainer = Odd if data is DATA else Trainer
        run = trainer(llama(), arguments(), train_dataset=data, callbacks=callbacks)
        cause = "old_logps" if data is DATA else "gave other batches in a second pass"
        with pytest.raises(ValueError, match=rf"The training was not begun.*{cause}.*Train without a score"):
            run.train()
    assert not began
