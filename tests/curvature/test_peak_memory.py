"""What is held in each phase, by sizes."""

from __future__ import annotations

from typing import Any

import facts_of_choices
import pytest
import tiny
import torch
from torch import Tensor, nn

from hf_pacgen.config import Estimator, HVPMethod, ScoreConfig
from hf_pacgen.curvature.diagonal.estimate import _Parts
from hf_pacgen.curvature.hvp import traced_product
from hf_pacgen.curvature.peak_memory import PeakMemory, Untraceable, sums_bytes
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.measures.session import session


@pytest.mark.parametrize(
    "settings", [{}, {"standard_error": True}, {"estimator": "hutchinson"}, {"estimator": "exact"}]
)
def test_sums_are_those_that_processes_add_up(settings: dict[str, Any]) -> None:
    config = ScoreConfig(**settings)
    model, batch = tiny.make("bert", dtype=torch.float32), tiny.examples("bert", 2)
    with session(model, [batch], config, progress=False) as (objective, _), WeightSpace(objective) as space:
        parts = _Parts.of(Estimator(config.estimator), space, config)
        tensors = parts.tensors().values()
        expected = sum(t.numel() * t.element_size() for t in tensors)
        found = sums_bytes(objective.parameters, config)
    assert found.added == expected and found.held > found.added - 48


def test_an_estimator_without_sums_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    member = facts_of_choices.added(Estimator, monkeypatch, Estimator.BLEND.facts)
    with pytest.raises(ValueError, match=r"not known what the estimator .* sums: say it here"):
        sums_bytes({}, ScoreConfig(estimator=member))
    with pytest.raises(LookupError, match=r"no product by derivatives called .*FINITE_DIFFERENCE"):
        traced_product(HVPMethod.FINITE_DIFFERENCE, nn.Identity(), {}, lambda: None, {})()  # type: ignore[arg-type,return-value]


def layered(width: int) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(4))), torch.ones(1, width)


def loss(model: nn.Module, batch: Tensor) -> tuple[Tensor, float]:
    return model(batch).square().sum(), 1.0


def test_large_weights_and_a_small_batch_are_a_few_vectors() -> None:
    model, batch = layered(700)
    parameters = dict(model.named_parameters())
    memory = PeakMemory(model, parameters, batch, ScoreConfig(), HVPMethod.FINITE_DIFFERENCE, loss_fn=loss)
    weights = sum(p.numel() * 4 for p in parameters.values())
    found = {name: bytes_ / weights for name, bytes_ in memory.by_phase().items()}
    # weights and their copy; with three gradients and a product, with two Lanczos vectors, with two sums beside one
    assert found["checks"] == pytest.approx(6, rel=0.02)
    assert 5 < found["rho"] < 5.6 and 5.5 < found["diagonal"] < 7
    shared = memory.by_phase(4, sharded=True)
    assert shared["checks"] < memory.by_phase()["checks"]
    assert memory.flops()[1] > memory.flops()[0] > 0


def test_work_of_an_unknown_kind_and_elements_that_are_looked_at() -> None:
    model, batch = layered(8)
    parameters = dict(model.named_parameters())

    def looks(model: nn.Module, batch: Tensor) -> tuple[Tensor, float]:
        return model(batch).sum() * float(batch.sum()), 1.0

    memory = PeakMemory(model, parameters, batch, ScoreConfig(), None, loss_fn=looks)
    with pytest.raises(Untraceable):
        memory.by_phase()
    with pytest.raises(Untraceable, match="no work called 'sleep' to trace"):
        memory._trace("sleep")
