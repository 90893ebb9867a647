"""A gradient that is not finite, and that somebody throws away, costs the step that it costs the plain Trainer."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from training_runs import SHELLS, llama, make, weights
from transformers import Trainer, TrainerCallback

from hf_pacgen.config import NoiseConfig
from hf_pacgen.training.callback.callback import PACGenCallback

BROKEN = (5, 11, 17)


class Breaks(Trainer):
    """Its loss is no number in three steps."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs) * (math.nan if self.state.global_step in BROKEN else 1.0)
        if not loss.isfinite():
            vars(self).setdefault("lost", set()).add(self.state.global_step)
        return loss


class Discards(TrainerCallback):
    """Removes gradients that are not finite, or makes zeros of them."""

    def __init__(self, zeros: bool) -> None:
        self.zeros = zeros

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                parameter.grad = torch.zeros_like(parameter) if self.zeros else None


def curvature(trainer: Any) -> Any:
    found = [c.noisy_step for c in trainer.callback_handler.callbacks if isinstance(c, PACGenCallback)]
    return (found or [trainer._noisy_step])[0].tracker


SOURCES: dict[str, dict[str, Any]] = {
    "price": {"curvature_every": 2},
    "pairs": {"curvature_every": 1, "antithetic": True},
    "adam": {"curvature": "adam"},
    "hutchinson": {"curvature": "hutchinson", "curvature_every": 1},
    "rho": {"rho": "estimate", "rho_every": 1},
}


@pytest.mark.parametrize(("order", "clip"), [("before", 0.0), ("before", 1.0), ("callbacks", 0.0), ("callbacks", 1.0)])
@pytest.mark.parametrize(
    ("shell", "source"), [(s, k) for s in SHELLS for k in SOURCES if (s, k) != ("callback", "pairs")]
)
def test_a_discarded_gradient_costs_one_step(shell: str, source: str, order: str, clip: float) -> None:
    if source in ("hutchinson", "rho") and (clip or order == "before"):
        pytest.skip("estimates take gradients of their own")
    noise = NoiseConfig(eta=1e3, epsilon=0.02, gamma=0.0, **SOURCES[source])
    last: list[Any] = []

    class Looks(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            last[:] = [curvature(trainer).curvature(), curvature(trainer).means, curvature(trainer).rho]

    how: dict[str, Any] = {order: [Discards(zeros=bool(clip))], "max_steps": 24, "max_grad_norm": clip}
    how.setdefault("callbacks", []).append(Looks())
    model = llama(num_hidden_layers=1)
    trainer: Any = make(shell, noise, model=model, trainer=Breaks, **how)
    trainer.train()
    assert trainer.lost == set(BROKEN)  # and no other step
    assert all(bool(tensor.isfinite().all()) for tensor in weights(model).values())
    found, means, rho = last
    assert all(bool(tensor.isfinite().all()) for tensor in found.values()) and math.isfinite(rho)
    if source in ("price", "pairs"):  # and not as a sample of 0 either
        counts = [-math.log(mean.growth) / math.log(noise.curvature_decay) for mean in means.values()]
        assert sum(counts) == pytest.approx(24 - len(BROKEN))


@pytest.mark.parametrize("settings", [{"curvature": "hutchinson", "curvature_every": 1}, {"rho": "estimate"}])
def test_a_loss_that_is_never_finite_is_refused(settings: dict[str, Any]) -> None:
    class Never(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Tensor:
            return super().compute_loss(*args, **kwargs) * math.nan  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match="expected a finite number"):
        make("trainer", NoiseConfig(eta=1e3, **settings), model=llama(), trainer=Never).train()


def test_an_estimate_that_is_left_out_says_so(caplog: pytest.LogCaptureFixture) -> None:
    noise = NoiseConfig(eta=1e3, curvature="hutchinson", curvature_every=1)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        make("trainer", noise, model=llama(), trainer=Breaks, max_steps=7, callbacks=[Discards(False)]).train()
    assert caplog.text.count("An estimate of the noise was left out, and its running curvature stays as it is") == 1
