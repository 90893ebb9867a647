"""The space of the weights: vectors, displacements and gradients of a small model, against flat ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from hf_pacgen.curvature.displacement import TensorDirection
from hf_pacgen.curvature.weight_space import WeightSpace, zeros_like
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.objective import Objective


def space_of(model: nn.Module, data: list[Any]) -> WeightSpace:
    objective = Objective(model, Batches(data, model=model))
    objective.inspect()
    return WeightSpace(objective)


@pytest.fixture
def space() -> WeightSpace:
    return space_of(tiny.make("bert"), [tiny.examples("bert", 3)])


def test_vectors_are_like_the_weights(space: WeightSpace) -> None:
    names = {name for name, p in space.objective.model.named_parameters() if p.requires_grad}
    vector = space.gaussian(0, "some")
    assert vector.keys() == space.zeros().keys() == names
    assert space.num_parameters == len(tiny.flat(vector)) and space.has_second_derivatives
    assert space.norm(vector) == pytest.approx(tiny.flat(vector).norm().item())
    assert float(space.total(torch.tensor(3.0))) == 3  # all parts of the weights are here
    same = space.gaussian(0, "some")
    assert all(same[name].equal(value) for name, value in vector.items())


def test_directions_are_what_they_say(space: WeightSpace) -> None:
    signs = space.signs(0, "probe")
    assert set(tiny.flat(space.stored(signs)).tolist()) == {-1.0, 1.0}
    assert space.length(signs) == pytest.approx(math.sqrt(space.num_parameters))
    box = tiny.flat(space.stored(space.box(0, "box", gamma=0.1, epsilons=dict.fromkeys(space.weights, 0.2))))
    edge = 0.1 * tiny.flat(space.weights).abs() + 0.2
    assert bool((box.abs() <= edge).all()) and (box / edge).abs().max() > 0.9


def test_half_widths_are_lengths_or_parts_of_each_tensor(space: WeightSpace) -> None:
    assert set(space.half_widths(0.3, "absolute").values()) == {0.3}
    sizes = {name: w.detach().double().square().mean().sqrt().item() for name, w in space.weights.items()}
    assert space.half_widths(0.3, "rms") == pytest.approx({name: 0.3 * max(s, 1e-12) for name, s in sizes.items()})


def test_the_gradient_of_a_batch_is_that_of_its_summed_loss(space: WeightSpace) -> None:
    batch = tiny.examples("bert", 3)
    with space:
        first = space.add_gradient(batch, 0)
        slope = space.slope(TensorDirection(space.weights), 0)
        space.add_gradient(batch, 0, -0.5)
    assert first.units == 3 and not first.total.requires_grad
    found = space.take_gradient()
    assert all(p.grad is None for p in space.objective.model.parameters())
    loss = 3 * space.objective.model(**batch).loss
    expected = torch.autograd.grad(loss, list(space.objective.parameters.values()), allow_unused=True)
    for (name, parameter), gradient in zip(space.objective.parameters.items(), expected, strict=True):
        here = torch.zeros_like(parameter) if gradient is None else gradient
        torch.testing.assert_close(found[name].to_dense() if name in found else torch.zeros_like(here), here / 2)
    whole = sum((g * p).sum().item() for g, p in zip(expected, space.weights.values(), strict=True) if g is not None)
    assert slope == pytest.approx(whole)


def test_weights_come_back_after_an_exception(space: WeightSpace) -> None:
    before = {name: w.detach().clone() for name, w in space.weights.items()}
    with pytest.raises(KeyboardInterrupt), space:
        space.displace([(space.signs(0), 0.1)])
        assert not any(w.equal(before[name]) for name, w in space.weights.items())
        raise KeyboardInterrupt
    assert all(w.equal(before[name]) for name, w in space.weights.items())
    assert space.objective.rows.on_read is None


def test_the_scale_is_about_the_norm_of_the_weights(space: WeightSpace) -> None:
    assert space.scale == pytest.approx(tiny.flat(space.weights).norm().item(), rel=1e-6)
    nothing = space_of(tiny.make("bert"), [tiny.examples("bert", 3)])
    for weights in nothing.weights.values():
        weights.detach().zero_()
    assert nothing.scale == pytest.approx(0.02 * math.sqrt(nothing.num_parameters))


def test_only_the_rows_that_are_read_are_displaced() -> None:
    torch.manual_seed(0)
    model = tiny.bert(hidden_size=64).eval()
    batch = tiny.examples("bert", 2)
    space = space_of(model, [batch])
    words: Any = model.bert.embeddings.word_embeddings.weight  # type: ignore[union-attr]
    before, read = words.detach().clone(), batch["input_ids"].unique()
    with space.objective.rows.watching(), space:
        space.displace([(space.signs(0), 0.1)])
        assert words.equal(before)  # until they are read
        space.objective.loss(batch, 0)
        moved = (words != before).any(1).nonzero().flatten()
        assert moved.tolist() == read.tolist()
        space.displace([(space.signs(0), 0.1)], whole=True)
        assert bool((words != before).all())
    assert words.equal(before)


def test_accumulators_are_wide_and_contiguous() -> None:
    narrow = torch.randn(4, 3, dtype=torch.bfloat16).t()
    made = zeros_like(narrow)
    assert made.dtype == torch.float32 and made.is_contiguous() and made.shape == (3, 4) and not made.any()
