"""By how much gradients were scaled: told by a few of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from training_runs import arguments
from transformers import Trainer

from hf_pacgen import NoiseConfig, PACGenCallback
from hf_pacgen.noise.perturbation import Perturbation
from hf_pacgen.training.clipping import GradientRescale, loss_unscale


def test_scaled_gradients_are_told_by_how_much() -> None:
    model = nn.Linear(3, 2)

    class Scaler:
        scale = 1024.0

        def is_enabled(self) -> bool:
            return True

        def get_scale(self) -> float:
            return self.scale

    optimizer = type("Prepared", (), {"scaler": Scaler()})()
    for prepared, scale in ((None, 1.0), (optimizer, 1024.0)):
        rescale = GradientRescale(
            Perturbation(dict(model.named_parameters())), prepared, clips=True, average=lambda t: t
        )
        model.zero_grad()
        (scale * model(torch.ones(4, 3)).square().sum()).backward()
        clean = [p.grad / scale for p in model.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        factor = rescale.factor()
        assert factor is not None
        for parameter, before in zip(model.parameters(), clean, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad * factor, before)
        rescale.close()
        assert not model.weight._post_accumulate_grad_hooks  # type: ignore[attr-defined]
    assert loss_unscale(None) is None and float(loss_unscale(optimizer) or 0) == 1 / 1024


def test_gradients_that_vanished_or_overflowed() -> None:
    model = nn.Linear(3, 2)
    rescale = GradientRescale(Perturbation(dict(model.named_parameters())), None, clips=True, average=lambda t: t)
    (0 * model(torch.ones(1, 3)).sum()).backward()
    assert rescale.factor() == 1
    model.zero_grad()
    (torch.inf * model(torch.ones(1, 3)).sum()).backward()
    assert rescale.factor() == 0
    model.zero_grad()
    assert rescale.factor() is None
    unclipped = GradientRescale(Perturbation(dict(model.named_parameters())), None, clips=False, average=lambda t: t)
    model(torch.ones(1, 3)).sum().backward()
    assert unclipped.factor() is None


class Dead(nn.Module):
    """As many weights without a gradient as are looked at for the clipping, and one layer with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dead, self.layer = nn.Parameter(torch.zeros(4096)), nn.Linear(80, 80, bias=False)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.layer(x) - labels).square().mean() + 0 * self.dead.sum()}


class Numbers(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {name: torch.randn(80, generator=generator) for name in ("x", "labels")}


def test_clipping_is_told_by_gradients_that_are_there() -> None:
    found = []
    for norm in (0.0, 1e-3):
        curvature: list[float] = []

        class Looks(PACGenCallback):
            def on_step_end(self, *args: Any, curvature: Any = curvature, **kwargs: Any) -> None:
                assert self.noisy_step is not None
                curvature.append(self.noisy_step.tracker.curvature()["layer.weight"].abs().mean().item())

        args = arguments(max_grad_norm=norm, learning_rate=0.0, max_steps=40)
        callback = Looks(noise=NoiseConfig(curvature_every=1, epsilon=0.01))
        Trainer(Dead(), args, train_dataset=Numbers(), callbacks=[callback]).train()
        found.append(curvature[-1])
    assert 0.8 < found[1] / found[0] < 1.25
