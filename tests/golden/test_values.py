"""The comparison itself: to the last bit, or to a tolerance where the arithmetic is another."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from golden import test_golden
from golden.values import differences, environment, stored, written

TENSOR = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
LAST_BIT = torch.nextafter(TENSOR, 2 * TENSOR)


def through_json(**values: Any) -> dict[str, Any]:
    text = written({"torch": "2", "cases": {"case": stored(values)}})
    return dict(json.loads(text, parse_constant=pytest.fail)["cases"]["case"])  # no NaN that only Python reads


@pytest.mark.parametrize(
    "value",
    [
        *(0.1, -0.0, 1e-320, 1e300, math.nan, math.inf, -math.inf, None, True, 7, "kl"),
        *(TENSOR, (1.0, None), {"a": TENSOR, "b": {"c": math.nan}}, [], TENSOR[:0], TENSOR / 0),
    ],
    ids=repr,
)
def test_what_is_written_is_read_as_it_was(value: Any) -> None:
    for tolerance in (None, 1e-9):
        assert differences(stored({"v": value}), through_json(v=value), tolerance) == []


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        *((math.nextafter(0.1, 1), 0.1), (-0.0, 0.0), (1, 1.0), (1, True), (None, math.nan), (0.1, math.nan)),
        *((LAST_BIT, TENSOR), (TENSOR.float(), TENSOR), (TENSOR[None], TENSOR), (-0.0 * TENSOR, 0.0 * TENSOR)),
        *(({"a": TENSOR}, {"b": TENSOR}), (TENSOR.flip(0), TENSOR)),
    ],
)
def test_the_same_bits_are_asked_for(found: Any, expected: Any) -> None:
    (line,) = differences(stored({"v": found}), through_json(v=expected), None)
    assert line.startswith("v: expected")


def test_a_tolerance_lets_rounding_pass() -> None:
    expected = through_json(a=0.1, b=TENSOR, blend=[0.3], n=3)
    near = {"a": math.nextafter(0.1, 1), "b": LAST_BIT, "blend": [0.4], "n": 3}
    assert differences(stored(near), expected, 1e-9) == []
    assert len(differences(stored(near), expected, None)) == 3


@pytest.mark.parametrize(
    "change",
    [
        *({"a": 0.1001}, {"a": math.nan}, {"a": None}, {"n": 4}),
        *({"b": 1.001 * TENSOR}, {"b": TENSOR[:2]}, {"b": -TENSOR}, {"b": TENSOR / 0}),
    ],
    ids=repr,
)
def test_a_tolerance_lets_nothing_else_pass(change: dict[str, Any]) -> None:
    values = {"a": 0.1, "b": TENSOR, "n": 3}
    (line,) = differences(stored({**values, **change}), through_json(**values), 1e-9)
    assert line.startswith(f"{next(iter(change))}: expected")


def test_a_value_that_is_gone_is_told_and_a_new_one_is_not() -> None:
    assert differences(stored({"new": 1}), {"old": 2}, None) == ["old: expected 2, and there is none"]


def test_bits_are_asked_for_where_they_were_recorded_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment() == environment.__wrapped__()  # the fingerprint is the same each time
    monkeypatch.setattr(test_golden, "GOLDEN", environment())
    assert test_golden.tolerance("score/bert/float64") is None
    monkeypatch.setattr(test_golden, "GOLDEN", {**environment(), "torch": "0.1"})
    assert test_golden.tolerance("score/bert/float64") == 1e-9
    monkeypatch.setattr(test_golden, "GOLDEN", {**environment(), "fingerprint": "0"})
    assert test_golden.tolerance("score/llama/float64") == test_golden.tolerance("score/bert/float32") == 1e-3
