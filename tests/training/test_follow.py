"""A size of noise that follows the losses of a run: in both shells, resumed, in two processes, and what it refuses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import PartialState
from launch import on_two_processes
from torch.utils.data import IterableDataset
from training_runs import Sentences, bert, losses, make, same, trained, weights

from hf_pacgen.config import NoiseConfig
from hf_pacgen.distributed.processes import Processes
from hf_pacgen.noise.auto_scale import AutoScale
from hf_pacgen.training.callback.callback import PACGenCallback
from hf_pacgen.training.follow import EVERY, FollowedLosses
from hf_pacgen.training.noise_state import NOISE_FILE

ROWS = NoiseConfig(recipe="rows", max_scale=0.5)  # type: ignore[arg-type]
# random labels that are remembered within a few passes of eight steps
FITTED: dict[str, Any] = {"max_steps": 96, "learning_rate": 1e-2, "per_device_train_batch_size": 4}


def fitted(shell: str, noise: NoiseConfig | None = ROWS, **changes: Any) -> Any:
    return trained(shell, noise, data=Sentences(32), model=bert(0.0), **FITTED | changes)


def logged(trainer: Any) -> list[float]:
    return [entry["noise_factor"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("shell", ["trainer", "callback"])
def test_the_noise_begins_when_examples_are_remembered(shell: str) -> None:
    run, plain = fitted(shell), fitted("plain", None)
    factors = logged(run)
    # nothing comes again in the first pass, and in the second all of the fall counts as learned
    assert factors[:9] == [0.0] * 9 and losses(run)[:9] == losses(plain)[:9]
    assert max(factors) > 0.2 and losses(run)[-1] > losses(plain)[-1]
    assert "training_step" not in vars(run)


def test_both_shells_train_alike() -> None:
    one, other = fitted("trainer"), fitted("callback")
    assert logged(one) == logged(other) and same(weights(one.model), weights(other.model))


@pytest.mark.parametrize("recipe", ["ascent", "pacgen", "sam", "mixed", "two-point"])
def test_every_recipe_can_follow_the_run(recipe: str) -> None:
    noise: Any = {"recipe": recipe, "scale": "auto", "max_scale": 0.5, "eta": 10}
    run, plain = fitted("trainer", NoiseConfig(**noise)), fitted("plain", None)
    assert losses(run)[:8] == losses(plain)[:8] or recipe in ("mixed", "two-point")
    assert max(logged(run)) > 0 and not same(weights(run.model), weights(plain.model))


def test_accumulated_losses_are_those_of_steps() -> None:
    """Two micro-batches of two are a batch of four."""
    accumulated = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    one, other = fitted("trainer", max_steps=40), fitted("trainer", max_steps=40, **accumulated)
    # the noise of the second micro-batch is another draw
    assert logged(one)[:12] == pytest.approx(logged(other)[:12], abs=1e-4)
    assert one._noisy_step is None and len(logged(other)) == 40


@pytest.mark.parametrize("shell", ["trainer", "callback"])
@pytest.mark.parametrize("at", [42, 44])
def test_a_resumed_run_is_the_uninterrupted_one(shell: str, at: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = FITTED | {"max_steps": 64, "save_strategy": "steps", "save_steps": at}
    runs = [
        make(shell, ROWS, data=Sentences(32), model=bert(0.0, seed), output_dir=str(tmp_path), **settings)
        for seed in (0, 5)
    ]
    runs[0].train()
    runs[1].train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert max(logged(runs[0])) > 0 and logged(runs[0]) == logged(runs[1])
    assert same(weights(runs[0].model), weights(runs[1].model))


def test_a_checkpoint_without_the_state_is_gone_on_with_at_the_next_pass(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = FITTED | {"max_steps": 12, "save_strategy": "steps", "save_steps": 12}
    fixed = NoiseConfig(recipe="rows", scale=0.1)  # type: ignore[arg-type]
    make("trainer", fixed, data=Sentences(32), output_dir=str(tmp_path), **settings).train()
    checkpoint = tmp_path / "checkpoint-12"
    run: Any = make("trainer", ROWS, data=Sentences(32), output_dir=str(tmp_path), **settings | {"max_steps": 40})
    heard: list[int] = []
    run.log = lambda *args, **kwargs: heard.append(run._noisy_step.follows.auto.heard)
    run.train(resume_from_checkpoint=str(checkpoint))
    assert f"The noise of {checkpoint} had one size: that of scale='auto' follows the run from here on." in caplog.text
    # four steps of the pass were left
    assert heard[0:8] == [0] * 8 and max(heard) == 20
    (checkpoint / NOISE_FILE).unlink()
    make("trainer", ROWS, data=Sentences(32), output_dir=str(tmp_path), **settings | {"max_steps": 13}).train(
        resume_from_checkpoint=str(checkpoint)
    )
    assert f"{checkpoint} has no {NOISE_FILE}: the size of the noise follows the run from here on." in caplog.text


def test_losses_are_looked_at_every_few_steps() -> None:
    follows = FollowedLosses(AutoScale(8), Processes())
    for step in range(10):
        follows.begin_step(step)
        follows.observe(torch.tensor(1.0))
        follows.observe(torch.tensor(0.5))
    assert follows.auto.heard == 2 * EVERY and follows.auto.running == 1.5
    assert follows.state()["pending"] == [1.5, 1.5]


def _hear(rank_losses: list[list[float]]) -> None:
    processes = Processes(PartialState())  # type: ignore[arg-type]
    follows = FollowedLosses(AutoScale(3), processes)
    means = [sum(pair) / 2 for pair in zip(*rank_losses, strict=True)]
    alone = FollowedLosses(AutoScale(3), Processes())
    for step, (own, mean) in enumerate(zip(rank_losses[processes.rank], means, strict=True)):
        for heard, loss in ((follows, own), (alone, mean)):
            heard.begin_step(step)
            heard.observe(torch.tensor(loss))
    assert follows.state() == alone.state() and follows.factor == alone.factor > 0


def test_two_processes_hear_the_mean_of_their_losses() -> None:
    # exact in binary
    on_two_processes(_hear, [[4.0, 4.5, 4.25, 2.0, 2.5, 2.0, 1.0, 1.5, 1.0, 0.5] * 2, [4.0, 3.5, 3.75] + [1.0] * 17])


class Stream(IterableDataset[Any]):
    """Examples without an end."""

    def __iter__(self) -> Any:
        examples = Sentences(8)
        while True:
            yield from (examples[i] for i in range(8))


def test_what_cannot_be_followed(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(
        ValueError, match=r"in random order; got train_sampling_strategy='sequential'\. Set it to 'random'"
    ):
        fitted("trainer", train_sampling_strategy="sequential")
    caplog.set_level(logging.WARNING)
    run = trained("trainer", ROWS, data=Stream(), max_steps=20)
    assert "scale='auto' adds no noise here: the training data have no length" in caplog.text
    assert max(logged(run)) == 0


def test_a_callback_needs_a_trainer_to_listen_to() -> None:
    run = make("plain", None, data=Sentences(8))
    callback = PACGenCallback(noise=ROWS)
    run.create_optimizer()
    events: Any = {"optimizer": run.optimizer, "train_dataloader": run.get_train_dataloader(), "model": run.model}
    with pytest.raises(
        ValueError, match=r"this PACGenCallback could not find the Trainer\. Let a transformers Trainer c"
    ):
        callback.on_train_begin(run.args, run.state, run.control, **events)
