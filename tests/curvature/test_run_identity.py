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
        (functools.partial(math.sqrt, 2), {"x": "sqrt"}),
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
