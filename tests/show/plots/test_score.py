"""Pictures: what they show, in numbers and words.  How they look was looked at."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from sample_results import module, sample_result

from hf_pacgen.config import Estimator
from hf_pacgen.results.diagonal import DiagonalEstimate
from hf_pacgen.show.plots import plot_by_module, plot_hessian_diagonal, save_figure

RESULT = sample_result()
OLD = ("score", "kl_complexity", "hessian_trace", "num_parameters")


def bars(ax: Axes) -> dict[str, list[float]]:
    """The lengths of the bars, by the label of their series."""
    return {str(c.get_label()): [bar.get_width() for bar in c] for c in ax.containers}  # type: ignore[union-attr]


def test_the_bars_stack_what_the_complexity_is_made_of() -> None:
    ax = plot_by_module(RESULT, per_parameter=False)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["layer.0", "layer.1", "head"]
    assert {name: pytest.approx(lengths) for name, lengths in bars(ax).items()} == {
        "size of the weights": [60, 45, 15],
        "the Hessian alone": [12, 9, 3],
        "added by ρ": [48, 36, 12],
    }
    starts = [[bar.get_x() for bar in c] for c in ax.containers]  # type: ignore[union-attr]
    assert starts == [[0, 0, 0], pytest.approx([60, 45, 15]), pytest.approx([72, 54, 18])]
    assert ax.get_xlabel() == "nats (lower is better)"
    assert ax.get_title(loc="left") == "What K(η) at η = 1,000 is made of, by module"
    low, high = ax.get_xlim()
    assert low == 0 and high > 120
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the largest is on top"
    assert {text.get_text().strip() for text in ax.texts} == {"120", "90", "30"}


def test_the_other_modules_are_pooled() -> None:
    ax = plot_by_module(RESULT, top_modules=1, per_parameter=False)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["layer.0", "2 other modules"]
    assert [sum(lengths) for lengths in bars(ax).values()] == pytest.approx([120, 24, 96])
    assert plot_by_module(RESULT, top_modules=2).get_yticklabels()[-1].get_text() == "1 other module"


def test_by_default_the_size_of_a_module_does_not_rule() -> None:
    ax = plot_by_module(RESULT, top_modules=1)
    assert next(iter(bars(ax).values())) == pytest.approx([60 / 50, 60 / 50])
    assert ax.get_xlabel() == "nats per parameter (lower is better)"


def test_a_result_of_release_0_1_has_one_bar_a_module() -> None:
    old = {name: {k: v for k, v in m.items() if k in OLD} for name, m in RESULT.by_module.items()}
    ax = plot_by_module(sample_result(by_module=old), per_parameter=False)
    assert bars(ax) == {"K(η), in one": [120, 90, 30]}


def test_long_names_keep_their_end_and_zeros_have_an_axis() -> None:
    name = "model.decoder." + "block." * 20 + "mlp.fc1"
    ax = plot_by_module(sample_result(by_module={name: module(0.0, 0.0, 3)}))
    label = ax.get_yticklabels()[0].get_text()
    assert label.startswith("...") and label.endswith("mlp.fc1") and len(label) == 44
    assert ax.get_xlim() == (0, 1)


def test_axes_that_are_given_are_used() -> None:
    ax = Figure().add_subplot()
    assert plot_by_module(RESULT, ax=ax) is ax
    assert plot_hessian_diagonal(torch.ones(3), ax=ax) is ax


def histogram(ax: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Heights and edges of the bins, by the first word of their label."""
    found = {}
    for patch in ax.patches:
        assert isinstance(patch, StepPatch)
        data: Any = patch.get_data()
        found[str(patch.get_label()).split()[0]] = (list(data.values), list(data.edges))
    return found


def test_the_histogram_is_even_in_the_logarithm() -> None:
    values = {"a": torch.tensor([[1e-4, 3e-3], [3e-2, -3e-2]]), "b": torch.tensor([0.0, 1.0, 0.0])}
    ax = plot_hessian_diagonal(values, bins=4)
    drawn = histogram(ax)
    assert drawn["positive"][0] == [1, 1, 1, 1]
    assert drawn["negative"][0] == [0, 0, 1, 0]
    assert drawn["positive"][1] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1], rel=1e-5)
    assert ax.get_xscale() == "log"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]  # type: ignore[union-attr]
    assert labels == ["positive curvature: 4 (57.1 %)", "negative curvature: 1 (14.3 %)"]
    assert ax.get_title(loc="left") == (
        "Hessian diagonal of 7 weights\ntrace 1.003; 2 (28.6 %) are exactly 0 and not drawn"
    )
    assert "|$H_{ii}$|" in ax.get_xlabel() and ax.get_ylabel() == "weights in a bin"


def test_the_histogram_of_an_estimate_counts_every_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, and in a range of bfloat16."""
    monkeypatch.setattr("hf_pacgen.show.plots.score.CHUNK", 7)
    torch.manual_seed(0)
    values = {"a": torch.randn(10, 10).exp(), "b": torch.randn(33).bfloat16()}
    estimate = DiagonalEstimate(
        values=values,
        stderr=None,
        trace=1.0,
        trace_stderr=None,
        loss=1.0,
        num_units=1.0,
        num_examples=1,
        estimator=Estimator.EXACT,
        hvp_method=None,
        num_hvps=0,
        num_gradients=0,
        blend=None,
        notes=(),
    )
    drawn = histogram(plot_hessian_diagonal(estimate))
    negative = int((values["b"] < 0).sum())
    assert (sum(drawn["positive"][0]), sum(drawn["negative"][0])) == (133 - negative, negative)


@pytest.mark.parametrize("value", [0.0, 2.5, -2.5])
def test_a_single_value_has_a_bar(value: float) -> None:
    ax = plot_hessian_diagonal(torch.full((5,), value))
    low, high = ax.get_xlim()
    assert 0 < low < abs(value or 1) < high
    drawn = histogram(ax)
    assert sum(sum(heights) for heights, _ in drawn.values()) == (5 if value else 0)
    edges = drawn["positive"][1]
    assert edges[-1] / edges[0] == pytest.approx(10 if value else 100)


@pytest.mark.parametrize("kind", ["png", "svg", "PNG"])
def test_saved_pictures_are_whole_and_the_same_again(kind: str, tmp_path: Path) -> None:
    for draw in (lambda: plot_by_module(RESULT), lambda: plot_hessian_diagonal(torch.tensor([1.0, -2.0, 0.0]))):
        first = save_figure(draw(), tmp_path / f"first.{kind}").read_bytes()
        assert save_figure(draw(), str(tmp_path / f"again.{kind}")).read_bytes() == first
        assert first.startswith(b"<?xml" if kind == "svg" else b"\x89PNG")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda path: plot_by_module(RESULT, top_modules=0), ValueError, "top_modules must be at least 1; got 0"),
        (lambda path: plot_by_module(sample_result(by_module={})), ValueError, "The result lists no modules"),
        (lambda path: plot_hessian_diagonal(torch.ones(2), bins=0), ValueError, "bins must be at least 1; got 0"),
        (lambda path: plot_hessian_diagonal({}), ValueError, "has no entries"),
        (lambda path: plot_hessian_diagonal(torch.tensor([1, math.nan])), ValueError, "contains NaN or infinity"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        call(tmp_path)
