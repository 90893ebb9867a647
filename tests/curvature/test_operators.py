"""Operators against the dense gradient and Hessian of the pooled loss, on ragged batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import tiny
import torch
from torch import Tensor

from hf_pacgen.config import HVPMethod
from hf_pacgen.curvature.displacement import TensorDirection
from hf_pacgen.curvature.hvp import HessianProduct
from hf_pacgen.curvature.operators import HessianDifference, MeanGradient, MeanHessian, MeanLoss
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.objective import Objective

WHOLE = tiny.examples("bert", 7)
PARTS = tiny.split(WHOLE, 4, 2, 1)


@contextmanager
def space() -> Iterator[WeightSpace]:
    model = tiny.make("bert")
    objective = Objective(model, Batches(PARTS, model=model))
    objective.inspect()
    with objective.rows.watching(), WeightSpace(objective) as found:
        yield found


def unit(space: WeightSpace, seed: int = 0) -> dict[str, Tensor]:
    vector = space.gaussian(seed, "unit")
    length = space.norm(vector)
    return {name: value / length for name, value in vector.items()}


def dense(space: WeightSpace) -> Tensor:
    """The Hessian of the mean loss over all parts, at the present weights."""
    return tiny.dense_hessian(space.objective.model, WHOLE)


def test_the_mean_loss_is_that_of_one_batch() -> None:
    ticks: list[int] = []
    with space() as here:
        mean = MeanLoss(here.objective, lambda: ticks.append(1))
        assert mean() == pytest.approx(here.objective.model(**WHOLE).loss.item())
    assert (mean.units, mean.examples, mean.batches_of_all(), len(ticks)) == (7, 7, 3, 3)


def test_the_mean_gradient_at_displaced_weights() -> None:
    with space() as here:
        shift = unit(here)
        loss, gradient = MeanGradient(here).at([(TensorDirection(shift), 0.3)])
        value = here.objective.model(**WHOLE).loss
        names = list(here.objective.parameters)
        expected = torch.autograd.grad(value, list(here.objective.parameters.values()), allow_unused=True)
        assert loss == pytest.approx(value.item())
        for name, g in zip(names, expected, strict=True):
            torch.testing.assert_close(gradient[name], torch.zeros_like(gradient[name]) if g is None else g)


@pytest.mark.parametrize("method", [HVPMethod.REVERSE_OVER_REVERSE, HVPMethod.FORWARD_OVER_REVERSE])
@pytest.mark.parametrize("same_steps", [False, True])
def test_the_mean_hessian_is_the_dense_one(method: HVPMethod, same_steps: bool) -> None:
    with space() as here:
        vector = unit(here)
        hessian = MeanHessian(HessianProduct(here, method), same_steps=same_steps)
        found = hessian @ vector
        assert tiny.relative_error(tiny.flat(found), dense(here) @ tiny.flat(vector)) < 1e-9
        assert (hessian.units, hessian.examples, hessian.batches_of_all()) == (7, 7, 3)
        twice = hessian.times({name: 2 * value for name, value in vector.items()}, norm=2.0)
        assert tiny.relative_error(tiny.flat(twice), 2 * tiny.flat(found)) < 1e-9


def test_the_difference_of_hessians_is_that_of_dense_ones() -> None:
    with space() as here:
        shift = unit(here, 1)
        product = HessianProduct(here, HVPMethod.REVERSE_OVER_REVERSE)
        batches = [(0, PARTS[0]), (1, PARTS[1]), (2, PARTS[2])]
        difference = HessianDifference(product, batches, TensorDirection(shift))
        vector = unit(here, 2)
        found = difference @ vector
        again = difference.add(vector, {name: value.clone() for name, value in found.items()})
        slopes = difference.gradients()
        here.restore()
        at_w, gradient_at_w = dense(here), MeanGradient(here).at([])[1]
        here.displace([(TensorDirection(shift), 1.0)])
        away, gradient_away = dense(here), MeanGradient(here).at([(TensorDirection(shift), 1.0)])[1]
    assert tiny.relative_error(tiny.flat(found), (away - at_w) @ tiny.flat(vector)) < 1e-8
    assert tiny.relative_error(tiny.flat(again), 2 * tiny.flat(found)) < 1e-9
    # summed over the units: only its direction matters
    expected = 7 * (tiny.flat(gradient_away) - tiny.flat(gradient_at_w))
    assert tiny.relative_error(tiny.flat(slopes), expected) < 1e-8
    assert difference.num_hvps == 12
