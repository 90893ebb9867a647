"""Projected ascent against the corners and summits of quadratics, where the highest place of a box is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_pacgen.config import SharpnessConfig
from hf_pacgen.curvature.ascent import ascend, coarse_weights
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.objective import Objective
from hf_pacgen.results.worst_case import WorstCaseSharpness


class Weights(nn.Module):
    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(weights.clone())
        self.other = nn.Parameter(torch.zeros(2, dtype=weights.dtype))


def of(values: Any, loss: Any, box: Any, tick: Any = None, **settings: Any) -> tuple[WorstCaseSharpness, Weights]:
    """The ascent on ``loss(w, other)``, and the model, which must be as it was."""

    def loss_fn(model: Any, batch: Tensor) -> tuple[Tensor, int]:
        return loss(model.w, model.other) * len(batch), len(batch)

    model = Weights(torch.as_tensor(values, dtype=torch.float64))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    objective = Objective(model, Batches([torch.zeros(2), torch.zeros(3)], model=model), loss_fn=loss_fn)
    with WeightSpace(objective) as space:
        result = ascend(space, box, SharpnessConfig(**settings), **{"tick": tick} if tick else {})
    assert all(p.equal(before[name]) for name, p in model.named_parameters())
    return result, model


def test_a_slope_leads_to_the_corner_of_the_box() -> None:
    slope = torch.tensor([3.0, -2.0, 0.5], dtype=torch.float64)
    result, _ = of([0.0, 1.0, -3.0], lambda w, other: slope @ w + 5, 0.1)
    corner = (slope.abs() * 0.1 * torch.tensor([1.0, 2.0, 4.0])).sum().item()  # b_i = ε(|w_i| + 1)
    assert result.value == pytest.approx(corner, rel=1e-12) and result.converged and result.box == 0.1
    assert result.loss == pytest.approx(-2 - 1.5 + 5) and result.status == ()
    assert result.relative == pytest.approx(100 * corner / (1 + result.loss))
    assert result.num_units == 5 and result.num_examples == 5


def test_a_summit_inside_the_box_is_found() -> None:
    top = torch.tensor([0.3, -0.4], dtype=torch.float64)
    result, _ = of([0.0, 0.0], lambda w, other: 2 - (w - top).square().sum(), 1.0, ascent_steps=60)
    assert result.value == pytest.approx(0.25, rel=1e-3) and result.value <= 0.25 * (1 + 1e-12)


def test_a_box_by_name_leaves_the_others_where_they_are() -> None:
    half = {"w": torch.tensor([0.5, 0.0, 2.0])}
    result, _ = of([1.0, 1.0, 1.0], lambda w, other: w.sum() + 100 * other.sum(), half)
    assert result.value == pytest.approx(2.5, rel=1e-12) and result.box is None
    one, _ = of([1.0, 1.0, 1.0], lambda w, other: w.sum(), {"w": torch.tensor(0.25)})  # one width for all
    assert one.value == pytest.approx(0.75, rel=1e-12)


def test_from_a_minimum_only_random_starts_lead_up() -> None:
    curvature = torch.tensor([1.0, 4.0], dtype=torch.float64)
    result, _ = of([0.0, 0.0], lambda w, other: (curvature * w * w).sum(), {"w": torch.ones(2)}, ascent_starts=3)
    assert result.rises[0] == 0 and result.rises[1:] == pytest.approx((5.0, 5.0))
    assert result.value == max(result.rises) and len(result.rises) == 3
    again, _ = of([0.0, 0.0], lambda w, other: (curvature * w * w).sum(), {"w": torch.ones(2)}, ascent_starts=3)
    assert again == result


def test_a_maximum_has_no_rise_and_never_a_negative_one() -> None:
    result, _ = of([0.0, 0.0], lambda w, other: -w.square().sum(), 0.5, ascent_starts=1)
    assert result.value == 0 == result.relative and result.converged
    flat, _ = of([0.0], lambda w, other: (w * 0).sum() + 1.0, 0.5)
    assert flat.value == 0 and flat.converged


def test_a_step_that_overshoots_is_shortened() -> None:
    """A narrow hill: the first step, a thousand boxes, jumps to the far edge, which is lower than the start."""

    def hill(w: Tensor, other: Tensor) -> Tensor:
        return torch.exp(-50 * (w - 0.2).square()).sum()

    result, _ = of([0.0], hill, 1.0, ascent_steps=60, ascent_starts=1)
    assert result.value == pytest.approx(1 - math.exp(-2), rel=1e-2) and result.steps > 3


def test_without_steps_it_says_that_it_did_not_settle() -> None:
    result, _ = of([1.0], lambda w, other: w.sum(), 1.0, ascent_steps=1, ascent_starts=1)
    assert not result.converged and result.value == 0 and result.steps == 1
    assert result.status == ("The ascent did not settle in 1 steps. Use more ascent_steps.",)


def test_every_batch_is_told() -> None:
    told: list[int] = []
    result, _ = of([1.0], lambda w, other: w.sum(), 1.0, tick=lambda: told.append(1))
    assert len(told) == 2 * result.steps


def test_a_loss_that_is_not_finite_in_the_box_is_put_down_to_it() -> None:
    def cliff(w: Tensor, other: Tensor) -> Tensor:
        return torch.where(w > 1.5, torch.inf, w).sum()

    with pytest.raises(ValueError, match=r"^In the box around the weights: The loss of batch 0 is inf.*smaller box\.$"):
        of([1.0], cliff, 1.0)
    with pytest.raises(ValueError, match=r"^The loss of batch 0 is inf: expected a finite number"):
        of([2.0], cliff, 1.0)


def test_coarse_weights_are_named_by_their_dtype() -> None:
    def sentences(*dtypes: torch.dtype) -> list[str]:
        model = nn.ParameterList([nn.Parameter(torch.ones(1, dtype=dtype)) for dtype in dtypes])
        return coarse_weights(Objective(model, Batches([torch.zeros(1)], model=model), loss_fn=lambda m, b: (0, 0)))  # type: ignore[arg-type,return-value]

    assert sentences(torch.float32, torch.float64) == []
    both = sentences(torch.float16, torch.bfloat16, torch.bfloat16)
    assert [s.split(":")[0] for s in both] == ["The weights are bfloat16", "The weights are float16"]
    assert "finer than 0.004 of a weight" in both[0] and "finer than 0.0005 of a weight" in both[1]
