"""What training estimates on batches of its data."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from training_runs import Sentences, arguments, difference, llama, weights
from transformers import Trainer

from hf_pacgen import NoiseConfig, PACGenCallback, PACGenTrainer

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
