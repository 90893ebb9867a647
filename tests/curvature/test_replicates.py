"""A few weights whose diagonals are kept by groups of batches: which they are, and that no way to add them matters."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from hf_pacgen import ScoreConfig, hessian_diagonal, pacgen
from hf_pacgen.curvature import displacement
from hf_pacgen.curvature.diagonal import replicates
from hf_pacgen.curvature.diagonal.replicates import NUM_REPLICATES, Replicates
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.objective import Objective


def space(**weights: Tensor) -> WeightSpace:
    """That of a model with these weights."""
    model = nn.Module()
    for name, value in weights.items():
        model.register_parameter(name, nn.Parameter(value))
    return WeightSpace(Objective(model, Batches([0], model=model), loss_fn=lambda model, batch: (torch.zeros(()), 1)))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only 60 weights are looked at, and 5 in each tensor at the least."""
    monkeypatch.setattr(replicates, "SAMPLED", 60)
    monkeypatch.setattr(replicates, "FEWEST", 5)


# ------------------------------------------------------------------------------------------------ which weights


def test_small_models_are_looked_at_as_a_whole() -> None:
    found = Replicates(space(a=torch.zeros(3, 4), b=torch.zeros(7), none=torch.zeros(0)))
    assert {name: places.tolist() for name, places in found.places.items()} == {
        "a": list(range(12)),
        "b": list(range(7)),
        "none": [],
    }
    assert found.scales["a"] == found.scales["b"] == 1 and found.sums["a"].shape == (NUM_REPLICATES, 12)


@pytest.mark.usefixtures("few")
def test_of_large_tensors_one_weight_stands_for_a_stretch() -> None:
    found = Replicates(space(small=torch.zeros(10), large=torch.zeros(50, 20), other=torch.zeros(1000)))
    assert {name: len(places) for name, places in found.places.items()} == {"small": 10, "large": 25, "other": 25}
    assert found.scales == {"small": 1.0, "large": 40.0, "other": 40.0}
    # one in each of as many equal stretches, so ascending and apart
    assert (found.places["large"] // 40).tolist() == list(range(25))
    assert not torch.equal(found.places["large"], found.places["other"])
    again = Replicates(space(large=torch.zeros(50, 20), small=torch.zeros(10), other=torch.zeros(1000)))
    assert torch.equal(again.places["large"], found.places["large"])  # by the name, whatever stands beside it


@pytest.mark.usefixtures("few")
def test_however_many_tensors_there_are_each_has_some() -> None:
    found = Replicates(space(**{f"w{i}": torch.zeros(100) for i in range(40)}))
    assert {len(places) for places in found.places.values()} == {5}


@pytest.mark.usefixtures("few")
def test_what_is_looked_at_stands_for_the_whole() -> None:
    # over many tensors of one trend: the sum of what is looked at, times what each stands for, is the sum of all
    values = torch.arange(1000.0, dtype=torch.float64).square()
    found = Replicates(space(**{f"w{i}": torch.zeros(1000) for i in range(40)}))
    sums = [found.scales[name] * found.weights(name, values).sum().item() for name in found.places]
    assert sum(sums) / 40 == pytest.approx(values.sum().item(), rel=0.03)


def test_the_weights_are_those_of_the_places_whatever_their_layout() -> None:
    whole = torch.arange(12.0).view(4, 3).t()
    found = Replicates(space(a=whole.clone()))
    assert torch.equal(found.weights("a", whole), whole.reshape(-1))


# ------------------------------------------------------------------------------------------------ what is added


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("cut", [1, 7, 40, 999, 1000])
def test_pieces_are_irrelevant(cut: int) -> None:
    values = torch.randn(1000, dtype=torch.float64)
    found = Replicates(space(w=torch.zeros(1000, dtype=torch.float64)))
    for start in range(0, 1000, cut):
        found.add(3, "w", start, values[start : start + cut])
    assert torch.equal(found.sums["w"][3], values[found.places["w"]])
    assert not found.sums["w"][[0, 1, 2, 4, 5, 6, 7]].any()
    found.add(3 + 5 * NUM_REPLICATES, "w", 0, values)  # batches are dealt to the groups in turn
    torch.testing.assert_close(found.sums["w"][3], 2 * values[found.places["w"]])


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("rows", [[], [0], [49], [3, 17, 18, 40], [40, 3, 18, 17], list(range(50))])
def test_rows_are_as_good_as_a_matrix_with_zeros_elsewhere(rows: list[int]) -> None:
    matrix, place = torch.randn(50, 20, dtype=torch.float64), torch.tensor(rows, dtype=torch.long)
    alone, whole = (Replicates(space(w=torch.zeros(50, 20, dtype=torch.float64))) for _ in range(2))
    alone.add(0, "w", place, matrix[place])
    whole.add(0, "w", 0, torch.zeros_like(matrix).index_copy(0, place, matrix[place]))
    assert torch.equal(alone.sums["w"], whole.sums["w"]) and bool(alone.sums["w"].any()) == bool(rows)


def test_sums_of_half_precision_are_wide() -> None:
    found = Replicates(space(w=torch.zeros(4, dtype=torch.bfloat16)))
    for _ in range(1000):
        found.add(0, "w", 0, torch.ones(4))
    assert found.sums["w"].dtype == torch.float32 and found.sums["w"][0].tolist() == [1000.0] * 4


# ------------------------------------------------------------------------------------------------ of real models


def estimate(name: str, **settings: Any) -> Any:
    model, parts = tiny.make(name), tiny.split(tiny.examples(name, 10), *[1] * 10)
    return hessian_diagonal(model, parts, config=ScoreConfig(**settings), progress=False)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("estimator", ["blend", "hutchinson", "gauss_newton", "exact"])
def test_the_groups_add_up_to_the_diagonal_where_all_weights_are_looked_at(name: str, estimator: str) -> None:
    found = estimate(name, estimator=estimator, passes=2)
    for tensor, values in found.values.items():
        total = sum(part.shares[tensor] * part.sums[tensor].sum(0) / part.units.sum() for part in found.sample.parts)
        assert isinstance(total, Tensor)
        torch.testing.assert_close(total, values.reshape(-1), rtol=1e-9, atol=1e-12)
        assert found.sample.scales[tensor] == 1
    assert all(part.units.sum() > 0 and (part.units > 0).all() for part in found.sample.parts)


@pytest.mark.usefixtures("few")
def test_chunks_are_irrelevant(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimate("bert")
    monkeypatch.setattr(displacement, "CHUNK", 7)
    cut = estimate("bert")
    for one, other in zip(whole.sample.parts, cut.sample.parts, strict=True):
        assert torch.equal(one.units, other.units)
        for tensor in one.sums:
            torch.testing.assert_close(one.sums[tensor], other.sums[tensor], rtol=1e-9, atol=1e-12)


def test_errors_from_some_of_the_weights_are_those_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model, parts = tiny.make("bert"), tiny.split(tiny.examples("bert", 16), *[1] * 16)
    config = ScoreConfig(estimator="hutchinson", epsilon=0.01, eta=1000.0)

    def errors() -> dict[str, Any]:
        result = pacgen(model, parts, config=config, progress=False)
        return {name: value for name, value in vars(result).items() if name.startswith("kl_") and "stderr" in name}

    every = errors()
    monkeypatch.setattr(replicates, "SAMPLED", 200)
    monkeypatch.setattr(replicates, "FEWEST", 5)
    some = errors()
    assert len(every) == 3 and some != every
    for name, value in every.items():
        assert 0.5 * value < some[name] < 2 * value, name
