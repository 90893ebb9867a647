"""What arguments are compared by, and how a difference is said."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from hf_pacgen import ScoreConfig
from hf_pacgen.config import HVPMethod
from hf_pacgen.curvature.run_identity import arguments, checksum, described, differences, qualified_name


@dataclass
class Settings:
    number: int
    data: Any


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, {"x": 0.5}),
        (None, {"x": None}),
        (math.nan, {"x": "nan"}),
        (HVPMethod.AUTO, {"x": "auto"}),
        (Path("a") / "b", {"x": "a/b"}),
        (math.sqrt, {"x": "sqrt"}),
        (functools.partial(math.pow, 2), {"x": "pow", "x(0)": 2}),
        (functools.partial(max, default=3, key=object()), {"x": "max", "x(default)": 3}),
        (object(), {"x": "object"}),
        ([1, {"a": "b"}], {"x[0]": 1, "x[1]['a']": "b"}),
        (Settings(3, object()), {"x['number']": 3}),
        (torch.empty(2, device="meta"), {"x": "float32 [2]"}),
        (torch.tensor([1]), {"x": f"int64 [1], checksum {checksum(torch.tensor([1]))}"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arguments_are_described_by_what_matters(value: Any, expected: dict[str, Any]) -> None:
    assert described("x", value) == expected


def test_models_and_settings_are_described_by_all_that_is_in_them() -> None:
    model = tiny.make("bert")
    whole = described("x", model)
    assert whole["x['class']"] == "BertForSequenceClassification" and len(whole) == 1 + len(model.state_dict())
    assert described("x", ScoreConfig(seed=3))["x['seed']"] == 3


def test_what_does_not_change_a_number_is_not_compared() -> None:
    given = {"model": tiny.make("bert"), "data": [1, 2], "config": ScoreConfig(), "accelerator": 1, "progress": True}
    found = arguments("pacgen", given | {"checkpoint_dir": "here"})
    assert found["the argument"] == {"checkpoint_dir is given": True}
    assert found["the"] == {
        "measure": "pacgen",
        "class of the model": "BertForSequenceClassification",
        "length of the data": 2,
    }
    assert found["the setting"] == ScoreConfig().to_dict() and "classifier.bias" in found["the form of"]


def test_few_differences_are_spelled_out() -> None:
    many = {"the setting": {str(i): i for i in range(7)}}
    found = differences(many, {"the setting": {"0": 1}}, there="there", here="here")
    assert found.startswith("the setting 0 (0 there and 1 here), the setting 1 (only there)")
    assert found.endswith(", and 2 more") and not differences(many, many, there="", here="")


def test_names_of_functions() -> None:
    assert qualified_name(Settings.__init__) == "Settings.__init__" and qualified_name(len) == "len"


def scaled(factor: float) -> Any:
    def loss(model: Any, batch: Any, power: int = 1) -> float:
        return factor**power

    return loss


def test_functions_of_one_name_are_told_apart() -> None:
    one, two = described("x", scaled(1.0)), described("x", scaled(2.0))
    assert one["x"] == two["x"] == "scaled.<locals>.loss" and one["code of x"] == two["code of x"]
    assert (one["x.factor"], two["x.factor"], one["x.default 0"]) == (1.0, 2.0, 1)
    first, second = (lambda model, batch: 1), (lambda model, batch: 2)
    assert described("x", first) != described("x", second)
    assert described("x", first) == described("x", lambda model, batch: 1) | {"x": described("x", first)["x"]}


def test_objects_that_are_called_are_told_apart_by_what_they_hold() -> None:
    class Loss:
        def __init__(self, weight: float) -> None:
            self.weight, self.other = weight, object()

        def __call__(self, model: Any, batch: Any) -> float:
            return self.weight

    found = described("x", Loss(0.5))
    assert found["x.weight"] == 0.5 and "x.other" not in found
    method = described("x", Loss(0.5).__call__)
    assert method["x"].endswith("Loss.__call__") and "code of x" in method


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.tensor([0, 1, 1, 0]), torch.tensor([1, 0, 0, 1])),
        (torch.tensor([1, 2]), torch.tensor([2, 1])),
        (torch.tensor([3, 0]), torch.tensor([0, 1])),
        (torch.tensor([True, False]), torch.tensor([False, True])),
        (torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])),
    ],
    ids=["labels", "places", "weighed", "flags", "signs"],
)
def test_checksums_tell_values_and_their_places(first: torch.Tensor, second: torch.Tensor) -> None:
    before = first.clone()
    assert checksum(first) != checksum(second) and checksum(first) == checksum(before)
    assert first.equal(before)  # whose values are read and never written


def test_no_two_lists_of_labels_have_one_checksum() -> None:
    all_of_them = torch.cartesian_prod(*[torch.arange(3)] * 7)
    assert len({checksum(labels) for labels in all_of_them}) == len(all_of_them)


def test_an_object_may_have_attributes_that_a_partial_has() -> None:
    class Loss:
        def __init__(self, scale: float) -> None:
            self.args, self.keywords, self.func, self.scale = object(), ["a"], 3, scale

        def __call__(self) -> None: ...

    assert described("loss_fn", Loss(1.0)) != described("loss_fn", Loss(2.0))
    assert "Loss" in described("loss_fn", Loss(1.0))["loss_fn"]


def test_functions_of_one_name_that_call_others_are_told_apart() -> None:
    first, second = (lambda x: torch.sin(x)), (lambda x: torch.cos(x))
    inside = [lambda x: (lambda: x + 1)(), lambda x: (lambda: x + 2)()]
    for one, other in ((first, second), inside):
        assert described("f", one)["f"] == described("f", other)["f"]
        assert described("f", one)["code of f"] != described("f", other)["code of f"]
