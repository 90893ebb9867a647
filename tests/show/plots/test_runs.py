"""Runs side by side in a picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from hf_pacgen.results.measures import Measures
from hf_pacgen.show.plots import plot_runs

FIXTURES = Path(__file__).parents[2] / "results" / "fixtures"
FOUND = Measures.from_dict(json.loads((FIXTURES / "compare-0.1.json").read_text())["runs"][0])


def test_every_run_has_its_interval() -> None:
    rows = [
        dataclasses.replace(FOUND, name=name, kl_complexity=value, kl_complexity_stderr=error, num_parameters=10)
        for name, value, error in (("a", 10.0, 1.0), ("b", 30.0, None))
    ]
    ax = plot_runs(rows)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"] and "K(η)" in ax.get_ylabel()
    (bars,) = ax.containers
    segments = bars.lines[2][0].get_segments()  # type: ignore[attr-defined]
    assert [end[1] for end in segments[0]] == pytest.approx([10 - 1.96, 10 + 1.96])
    assert [end[1] for end in segments[1]] == [30, 30]
    # between sizes, per parameter
    other = dataclasses.replace(rows[0], num_parameters=5, kl_complexity_per_parameter=2.0)
    ax = plot_runs([dataclasses.replace(rows[0], kl_complexity_per_parameter=1.0), other])
    ends = [[end[1] for end in bar] for bar in ax.containers[0].lines[2][0].get_segments()]  # type: ignore[attr-defined]
    assert ends[0] == pytest.approx([1 - 0.196, 1 + 0.196]) and ends[1] == pytest.approx([2 - 0.392, 2 + 0.392])


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="needs at least one result; got none"):
        plot_runs([])
    with pytest.raises(ValueError, match="Not all of the results have 'gap': measure it, or choose another"):
        plot_runs([dataclasses.replace(FOUND, gap=None)], measure="gap")
