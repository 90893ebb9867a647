"""The callback: what it refuses, and how it may be used."""

from __future__ import annotations

from typing import Any

import pytest
from training_runs import Sentences, arguments, difference, llama, same, weights
from transformers import Trainer, TrainerCallback

from hf_pacgen import NoiseConfig, PACGenCallback

NOISE = NoiseConfig(shape="isotropic", scale=0.05)


DATA = Sentences(causal=True)


def test_a_callback_may_be_extended_or_wrapped() -> None:
    class Extended(PACGenCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            super().on_step_begin(*args, **kwargs)

    class Wrapper(TrainerCallback):
        def __init__(self) -> None:
            self.inner = PACGenCallback(noise=NOISE)
            for event in ("on_train_begin", "on_pre_optimizer_step", "on_train_end"):
                setattr(self, event, getattr(self.inner, event))

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.inner.on_step_begin(*args, **kwargs)

    found = []
    for callback in (PACGenCallback(noise=NOISE), Extended(noise=NOISE), Wrapper()):
        model = llama()
        Trainer(model, arguments(), train_dataset=DATA, callbacks=[callback]).train()
        found.append(weights(model))
    model = llama()
    Trainer(model, arguments(), train_dataset=DATA).train()
    assert same(found[0], found[1]) and same(found[0], found[2])
    assert difference(found[0], weights(model)) > 1e-4


def test_a_callback_refuses_what_it_cannot_do() -> None:
    with pytest.raises(
        ValueError, match=r"antithetic=True takes two gradients.*Use PACGenTrainer, or a recipe of one grad"
    ):
        PACGenCallback(noise={"antithetic": True})
    with pytest.raises(ValueError, match="score_on must be one of 'evaluate', 'epoch', 'end'; got 'never'"):
        PACGenCallback(score_on="never")
