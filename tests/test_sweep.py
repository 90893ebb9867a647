"""The sweep in its smallest mode: it resumes, and its statistics are right."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy
import pandas
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import generalization_sweep as sweep
from sweep import report as sweep_report
from sweep import runs as sweep_runs


@pytest.mark.slow
def test_a_sweep_trains_measures_ranks_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--smoke", "--output_dir", str(tmp_path)]
    grid = sweep.grid
    monkeypatch.setattr(sweep, "grid", lambda given: grid(given)[:3])
    table = sweep.main(arguments)
    assert len(table) == 3 and table["converged"].all() and (table["loss"] <= 0.3).all()
    assert {"trend_batch.png", "trend_rate.png", "table.md", "runs.parquet"} <= {p.name for p in tmp_path.iterdir()}
    # a finished run is read; one whose measures are missing is measured again, at the same weights
    first = sorted(path for path in tmp_path.glob("*/result.json"))
    before = [json.loads(path.read_text()) for path in first]
    first[0].unlink()
    monkeypatch.setattr(sweep_runs, "train", lambda *a: pytest.fail("trained again"))
    again = sweep.main(arguments)
    now = json.loads(first[0].read_text())
    assert now["trace"] == pytest.approx(before[0]["trace"]) and len(again) == 3


def test_the_granulated_coefficient_fixes_the_other_axes() -> None:
    """Within each width the measure follows the gap; over everything it does not."""
    rows = [
        {"batch_size": b, "learning_rate": 0.1, "weight_decay": 0.0, "width": w, "seed": s}
        | {"gap": b + 100 * w, "trace": b - 50 * w + s, "converged": True}
        for b in (8, 16, 32)
        for w in (4, 8)
        for s in (0, 1)
    ]
    table = pandas.DataFrame(rows)
    (row,) = sweep_report.correlations(table)
    assert row["measure"] == "trace" and row["batch_size"] == 1.0 and row["width"] == -1.0
    assert row["granulated"] == 0.0 and row["batch axis"] == 1.0
    assert row["grid interval"][0] <= row["grid"] <= row["grid interval"][1]


def test_the_full_grid_is_found_among_the_axes() -> None:
    whole = [
        {"batch_size": b, "learning_rate": r, "weight_decay": 0.0, "width": 6, "seed": s}
        for b in (8, 32)
        for r in (0.1, 0.2)
        for s in (0, 1)
    ]
    extra = [{"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0, "width": 6, "seed": 2}]
    found = sweep_report.factorial(pandas.DataFrame(whole + extra))
    assert len(found) == 8 and set(found["batch_size"]) == {8, 32}


def test_the_interval_of_a_perfect_ranking_is_a_point() -> None:
    generator = numpy.random.default_rng(0)
    assert sweep_report.tau_interval(range(10), range(10), generator) == (1.0, 1.0)
