"""Which runs are ranked, which are told apart, and what is said of the others."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hf_pacgen.measures.ranking import agree, order, orders, ranked, stderr_of, unranked
from hf_pacgen.results.measures import Measures


def row(name: str, loss: float = 0.1, **values: Any) -> Any:
    needed = {
        f.name: 1.0 for f in dataclasses.fields(Measures) if f.default is f.default_factory is dataclasses.MISSING
    }
    counts = {"num_parameters": 10, "num_examples": 8}
    return Measures(
        **needed
        | counts
        | {"hessian_trace_stderr": None, "expected_sharpness_stderr": None}
        | values
        | {"name": name, "loss": loss}
    )


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        ([0.5, 0.53, 0.47], [0, 2]),  # 0.47 and 0.53 do not agree: of two pairs, that of lowest loss
        ([0.001, 0.02, 0.9], [0, 1]),  # within 0.02
        ([3.0, 1.0, 2.0], []),
        ([0.0, 0.0], [0, 1]),
        ([2.0, 0.1, 2.1, 0.11, 2.05], [0, 2, 4]),
        ([0.3], []),
        ([], []),
    ],
)
def test_the_largest_group_of_equal_training_loss_is_ranked(losses: list[float], found: list[int]) -> None:
    assert ranked(losses) == found
    assert not found or agree([losses[i] for i in found])


def test_runs_whose_intervals_overlap_are_ties() -> None:
    rows = [
        row("a", relative_sharpness=1.0, relative_sharpness_stderr=0.1),
        row("b", relative_sharpness=0.7, relative_sharpness_stderr=0.1),
        row("c", relative_sharpness=2.0, relative_sharpness_stderr=0.2),
    ]
    made = order(rows, "relative_sharpness")
    assert made is not None and str(made) == "b ≈ a < c" and made.tied == (True, False) and made.is_judged
    unknown = order([*rows, row("d", relative_sharpness=3.0)], "relative_sharpness")
    assert unknown is not None and str(unknown) == "b ≈ a < c ? d" and not unknown.is_judged
    assert order([*rows, row("d")], "relative_sharpness") is None


def test_the_standard_error_of_a_number_is_the_field_beside_it() -> None:
    judged = row("a", kl_complexity_stderr=2.0)
    assert stderr_of(judged, "kl_complexity") == 2.0 and stderr_of(judged, "kl_complexity_per_parameter") == 0.2
    assert stderr_of(row("a"), "kl_complexity") is None and stderr_of(row("a"), "kl_complexity_per_parameter") is None
    assert stderr_of(row("a", hessian_trace_stderr=3.0), "hessian_trace") == 3.0


def test_orders_are_by_measures_of_which_lower_is_better() -> None:
    rows = [
        row("a", score=2.0, test_loss=0.5, gap=0.4),
        row("b", score=1.0, test_loss=0.4, gap=0.3),
        row("c", loss=0.5),
    ]
    found = orders(rows)
    assert str(found["score"]) == "b ? a" and str(found["gap"]) == "b ? a" and "hessian_trace" not in found
    assert "score_per_parameter" not in found and "relative_sharpness" not in found and "loss" not in found
    wide = orders([rows[0], row("b", num_parameters=20)])
    assert "score" not in wide and "score_per_parameter" in wide
    assert orders([row("a"), row("b", loss=0.5)]) == {} == orders([])


def test_a_sentence_says_which_runs_are_left_unranked_and_why() -> None:
    assert unranked([row("a"), row("b", 0.11)]) is None and unranked([row("a")]) is None
    one = unranked([row("a"), row("b", 0.11), row("c", 0.8)]) or ""
    assert one.startswith("c (0.8) is left unranked: the training losses of the others are 0.1 to 0.11 (within 10 % or")
    assert "A score ranks solutions of equal training loss only" in one and "lower accuracy" in one
    two = unranked([row("a"), row("b", 0.11), row("c", 0.8), row("d", 2.0)]) or ""
    assert two.startswith("c (0.8), d (2) are left unranked")
    none = unranked([row("a"), row("b", 0.5)]) or ""
    assert none.startswith("No run is ranked: no two of them have training losses that agree (within 10 % or 0.02).")
