"""The picture of a measure against the gap: its points, names and rank correlation, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from sample_results import sample_result, sample_spectrum

from hf_pacgen.results.measures import Measures
from hf_pacgen.results.sharpness import Sharpness
from hf_pacgen.show.plots import plot_gap

SPECTRUM = sample_spectrum()


def measures(name: str, complexity: float, gap: float | None) -> Measures:
    values: dict[str, Any] = {field.name: 0.0 for field in dataclasses.fields(Measures)}
    return Measures(
        **values | {"name": name, "kl_complexity_per_parameter": complexity, "gap": gap, "loss": 5 - complexity}
    )


def test_the_gap_and_its_rank_correlation() -> None:
    rows = [measures("a", 1.0, 0.1), measures("b", 2.0, 0.5), measures("c", 3.0, 0.4)]
    ax = plot_gap(rows)
    assert ax.collections[0].get_offsets().tolist() == [[1, 0.1], [2, 0.5], [3, 0.4]]  # type: ignore[union-attr]
    assert [text.get_text() for text in ax.texts] == ["a", "b", "c"]
    assert ax.get_xlabel() == "K(η)/m, in nats"
    assert ax.get_title(loc="left").endswith("rank correlation (Spearman) +0.50")
    assert plot_gap(rows, measure="loss").get_xlabel() == "training loss"
    scores = [sample_result(kl_complexity_per_parameter=value) for value in (1.0, 2.0)]
    ax = plot_gap(scores, [0.2, 0.1], labels=["x", "y"])
    assert "-1.00" in ax.get_title(loc="left") and ax.texts[1].get_text() == "y"
    assert "is undefined" in plot_gap([SPECTRUM, SPECTRUM], [1, 2]).get_title(loc="left")
    assert (
        plot_gap([SPECTRUM] * 2, [1, 2]).get_xlabel() == "λ_max of the Hessian" and not plot_gap(scores, [1, 2]).texts
    )


def test_a_result_of_another_kind_has_its_measure() -> None:
    rise = Sharpness(
        mean=0.5,
        stderr=0.1,
        draws=3,
        converged=True,
        loss=1.0,
        num_examples=1,
        num_units=1.0,
        num_forward=7,
        noise_scale=0.1,
        status=(),
        config={},
    )
    ax = plot_gap([rise, dataclasses.replace(rise, mean=0.7)], [0.1, 0.3])
    assert ax.get_xlabel() == "expected sharpness" and "+1.00" in ax.get_title(loc="left")


def test_names_stand_above_and_below_in_turn_from_left_to_right() -> None:
    ax = plot_gap([measures(name, value, value) for name, value in (("c", 3.0), ("a", 1.0), ("b", 2.0))])
    assert [text.get_text() for text in ax.texts] == ["a", "b", "c"]
    assert [text.xyann[1] > 0 for text in ax.texts] == [True, False, True]  # type: ignore[attr-defined]


def test_a_field_without_a_label_is_its_own_name() -> None:
    scores = [sample_result(seconds=value) for value in (1.0, 2.0)]
    assert plot_gap(scores, [0.1, 0.2], measure="seconds").get_xlabel() == "seconds"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_gap([sample_result()], [1]), "at least 2 results; got 1"),
        (lambda: plot_gap([sample_result(), SPECTRUM], [1, 2]), "must all be of one kind.*got PACGenResult, Spectrum"),
        (lambda: plot_gap([sample_result()] * 2, [1]), "gaps must have one entry for each of the 2 results; got 1"),
        (lambda: plot_gap([sample_result()] * 2), "gaps must have one entry for each of the 2 results; got 0"),
        (lambda: plot_gap([sample_result()] * 2, [1, 2], labels=["a"]), "labels must have one entry.*got 1"),
        (lambda: plot_gap([sample_result()] * 2, [1, float("nan")]), "the gaps must be finite numbers"),
        (lambda: plot_gap([measures("a", 1, None), measures("b", 2, 1)]), "the gaps must be finite numbers"),
        (
            lambda: plot_gap([sample_result()] * 2, [1, 2], measure="config"),
            "PACGenResult has no number 'config' to draw",
        ),
        (
            lambda: plot_gap([measures("a", 1, 1)] * 2, measure="name"),
            "Measures has no number 'name'.*one of its numbers",
        ),
        (lambda: plot_gap([{"score": 1}] * 2, [1, 2]), r"of one kind that pacgen\(\), .* return; got dict"),  # type: ignore[list-item]
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
