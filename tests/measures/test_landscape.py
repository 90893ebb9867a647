"""Slices through the loss against closed forms, and the mean loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from hf_pacgen.measures.landscape import loss_slice, mean_loss
from hf_pacgen.results.landscape import LossSlice

CURVATURE = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(1, dtype=torch.float64))


def loss(model: Any, batch: Tensor) -> tuple[Tensor, int]:
    return (CURVATURE * model.w**2).sum() / 2 * len(batch), len(batch)


def of_quadratic(**settings: Any) -> LossSlice:
    return loss_slice(Weights(), [torch.zeros(3), torch.zeros(1)], loss_fn=loss, progress=False, **settings)


def test_a_line_is_a_parabola_and_leaves_the_box_where_it_should() -> None:
    way = {"w": torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)}
    line = of_quadratic(directions=[way], points=9, reach=3, gamma=0.1, epsilon=0.05)
    end = 0.1 * 1 + 0.05  # N of the first weight, the narrower of the two that move
    assert line.box.tolist() == pytest.approx([-end, end])
    (steps,) = line.steps
    assert steps.tolist() == pytest.approx(torch.linspace(-3 * end, 3 * end, 9).tolist())
    moved = Weights().w.detach() + steps[:, None] * way["w"]
    assert line.losses.tolist() == pytest.approx(((CURVATURE * moved**2).sum(1) / 2).tolist())
    assert line.loss == pytest.approx(8.5) == line.losses[4] and line.names == ("direction 1",)


def test_random_directions_lead_to_corners_of_the_box() -> None:
    assert of_quadratic(points=3).box.tolist() == pytest.approx([-1, 1])
    plane = of_quadratic(directions=2, points=3, seed=1)
    assert plane.losses.shape == (3, 3) and plane.losses[1, 1].item() == pytest.approx(plane.loss)
    assert plane.box.abs().sum(1).max() <= 2 + 1e-9 and plane.box[0].tolist() == pytest.approx([1, 0])
    assert torch.equal(of_quadratic(points=5, seed=3).losses, of_quadratic(points=5, seed=3).losses)


def test_the_outline_of_the_box_in_a_plane_of_two_weights_is_a_rectangle() -> None:
    ways = [{"w": torch.eye(3, dtype=torch.float64)[i]} for i in range(2)]
    plane = of_quadratic(directions=ways, points=5, half_widths={"w": torch.tensor([0.5, 2.0, 0.1])}, names=("a", "b"))
    assert plane.box.abs().amax(0).tolist() == pytest.approx([0.5, 2.0])
    on_edge = (plane.box[:, 0].abs() - 0.5).abs().minimum((plane.box[:, 1].abs() - 2).abs())
    assert on_edge.max() < 1e-9 and plane.names == ("a", "b")
    expected = (1 + plane.steps[0][:, None]) ** 2 / 2 + 2 * (-2 + plane.steps[1]) ** 2
    torch.testing.assert_close(plane.losses, expected)


def test_the_narrowest_parameter_bounds_a_line() -> None:
    ways, half = [{"w": torch.ones(3), "b": torch.ones(1)}], {"w": torch.ones(3), "b": torch.full((1,), 0.25)}
    for widths in (half, {"b": half["w"][:1], "w": torch.full((3,), 0.25)}):
        assert of_quadratic(directions=ways, points=3, half_widths=widths).box.tolist() == [-0.25, 0.25]


def test_a_line_that_no_box_bounds() -> None:
    still = of_quadratic(points=3, half_widths={"w": torch.zeros(3)}, directions=[{"w": torch.ones(3)}])
    assert still.box.tolist() == [0, 0] and still.steps[0].tolist() == [-2, 0, 2]


def test_the_mean_loss_is_pooled_and_the_model_comes_back() -> None:
    model, batch = tiny.make("gpt2").train(), tiny.examples("gpt2", 7, ignore=0.4)
    before = [p.detach().clone() for p in model.parameters()]
    losses = [mean_loss(model, data, progress=False) for data in ([batch], tiny.split(batch, 1, 4, 2))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-6)
    line = loss_slice(model, tiny.split(batch, 1, 4, 2), points=3, progress=False)
    assert line.loss == pytest.approx(losses[0], rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": 4}, "points must be an odd integer of at least 3.*got 4"),
        ({"points": 1}, "points must be an odd integer of at least 3.*got 1"),
        ({"reach": 0}, "reach must be a finite number greater than 0; got 0"),
        ({"reach": math.inf}, "reach must be a finite number greater than 0; got inf"),
        ({"directions": 3}, "directions must be 1 or 2, or one or two vectors by parameter name; got 3"),
        ({"directions": []}, "directions must be 1 or 2.*got 0"),
        ({"directions": [{"v": torch.ones(3)}]}, r"directions names \['v'\], which are no trainable parameters"),
        ({"directions": [{"w": torch.ones(2)}]}, r"directions\['w'\] must have shape \(3,\)"),
        ({"directions": [{"w": torch.zeros(3)}]}, "directions has a vector of length 0"),
        ({"half_widths": {"w": -torch.ones(3)}}, r"half_widths\['w'\] must be finite and >= 0"),
        ({"names": ("a", "b")}, "names must have one name for each of the 1 directions; got 2"),
    ],
)
def test_bad_input(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of_quadratic(**settings)
