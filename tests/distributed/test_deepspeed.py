"""What of DeepSpeed can be held without it: tests/training/test_deepspeed.py trains with it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_pacgen.distributed.deepspeed import LazyGradients, ZeroStep, engine_module, zero_optimizer


class Optimizer:
    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.loss_scale = 4.0

    def step(self, closure: Any = None) -> str:
        self.calls.append("step")
        return "stepped"


def test_a_step_is_heard_of_before_it_begins() -> None:
    optimizer = Optimizer()
    watched = ZeroStep(optimizer, lambda: optimizer.calls.append("before"))
    assert optimizer.step() == "stepped" and optimizer.calls == ["before", "step"]
    assert watched.loss_scale == 4
    watched.close()
    optimizer.step()
    assert optimizer.calls == ["before", "step", "step"] and "step" not in vars(optimizer)


def test_what_others_put_on_the_optimizer_comes_back() -> None:
    optimizer = Optimizer()
    own: Any = lambda: "own"  # noqa: E731 - as a scheduler wraps it
    optimizer.step = own  # type: ignore[method-assign]
    watched = ZeroStep(optimizer, lambda: None)
    assert optimizer.step is not own and optimizer.step() == "own"
    watched.close()
    assert optimizer.step is own


def test_gradients_are_gathered_once_and_only_where_asked_for() -> None:
    asked: list[str] = []

    def gather(name: str) -> Tensor:
        asked.append(name)
        return torch.ones(1)

    gradients = LazyGradients({"a": 0, "b": 0, "c": 0}, gather)
    assert list(gradients) == ["a", "b", "c"] and len(gradients) == 3
    assert gradients["a"] is gradients["a"] and gradients["c"] is not None
    assert asked == ["a", "c"]


def test_a_parameter_without_a_part_has_no_gradient() -> None:
    parameter: Any = nn.Parameter(torch.zeros(2))
    watched = ZeroStep(Optimizer(), lambda: None)
    assert watched.gradient(parameter) is None
    parameter.get_full_hp_grad = lambda: torch.ones(2)
    assert torch.equal(watched.gradient(parameter), torch.ones(2))  # type: ignore[arg-type]


def test_the_model_in_an_engine() -> None:
    class DeepSpeedEngine(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    inside = nn.Linear(1, 1)
    assert engine_module(DeepSpeedEngine(inside)) is inside
    assert engine_module(inside) is None


def test_deepspeed_without_zero_is_refused() -> None:
    class DeepSpeedOptimizerWrapper(SimpleNamespace):
        pass

    assert zero_optimizer(torch.optim.SGD(nn.Linear(1, 1).parameters())) is None
    with pytest.raises(ValueError, match=r"needs ZeRO, .* got Optimizer. Set zero_optimization: {'stage': 1}"):
        zero_optimizer(DeepSpeedOptimizerWrapper(optimizer=Optimizer()))
    zero = type("Zero", (Optimizer,), {"__module__": "deepspeed.runtime.zero.stage_1_and_2"})()
    assert zero_optimizer(DeepSpeedOptimizerWrapper(optimizer=zero)) is zero
