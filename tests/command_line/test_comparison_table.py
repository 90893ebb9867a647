"""A comparison can be read at 80 columns, and says what can be said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hf_pacgen.command_line.comparison_file import correlations, save_json
from hf_pacgen.command_line.comparison_table import natural, print_comparison, verdict
from hf_pacgen.measures.ranking import orders
from hf_pacgen.results.measures import Measures

FIXTURES = Path(__file__).parents[1] / "results" / "fixtures"
FOUND = Measures.from_dict(json.loads((FIXTURES / "compare-0.1.json").read_text())["runs"][0])


def test_compare_ranks_runs_of_equal_training_loss_and_marks_ties(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def measured(name: str, **values: Any) -> Measures:
        return dataclasses.replace(FOUND, name=name, **values)

    rows = [
        measured("best", loss=0.1, gap=0.1, relative_sharpness=1.0, relative_sharpness_stderr=0.2, kl_complexity=3.0),
        measured("even", loss=0.11, gap=0.2, relative_sharpness=1.2, relative_sharpness_stderr=0.1, kl_complexity=2.0),
        measured("last", loss=0.09, gap=0.3, relative_sharpness=4.0, relative_sharpness_stderr=0.1, kl_complexity=9.0),
        measured("short", loss=0.6, gap=-9.0, relative_sharpness=0.0),
    ]
    print_comparison(rows)
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "Rank correlation with the gap, n = 3 runs of equal training loss (95 % interval)" in out
        and "best ≈ even < last" in out
        and "even ? best ? last" in out
        and "1.2 ± 0.1" in out
    )
    assert "≈: not distinguishable, since the 95 % intervals overlap." in out
    assert "?: a standard error is unknown, so ties cannot be judged." in out
    assert "short (0.6) is left unranked: the training losses of the others are 0.09 to 0.11" in out
    # the run that stopped too early does not count for the rank correlation either
    assert correlations(rows)["relative_sharpness"] == 1 and correlations(rows)["kl_complexity"] == 0.5
    save_json(rows, str(tmp_path / "m.json"))
    whole = json.loads((tmp_path / "m.json").read_text())
    assert whole["ranked"] == ["best", "even", "last"] and len(whole["runs"]) == 4
    assert whole["order"]["relative_sharpness"] == {"names": ["best", "even", "last"], "tied": [True, False]}
    print_comparison([rows[0], rows[3]])
    out = " ".join(capsys.readouterr().out.split())
    assert "No run is ranked" in out and "lowest first" not in out
    apart = [measured("a", status=("Raise epsilon.",)), measured("b", status=("It is steep; lower epsilon.",))]
    print_comparison(apart)
    out = capsys.readouterr().out
    assert "• a: Raise epsilon." in out and "• b: It is steep." in out  # one step for both
    print_comparison(rows[:1])
    assert "ranked" not in capsys.readouterr().out


def test_a_row_a_run_at_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    big: dict[str, Any] = {"kl_complexity": 126_172_718.0, "kl_complexity_stderr": 3_700_000.0, "loss": 0.1}
    rows = [dataclasses.replace(FOUND, name=f"checkpoint-{step}", **big) for step in range(100, 1100, 100)]
    print_comparison([*rows, dataclasses.replace(FOUND, name="short", loss=0.9)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    tables = [i for i, line in enumerate(lines) if line.startswith("checkpoint-100 ")]
    assert len(tables) > 1  # what does not fit goes below
    assert "126,172,718 ± 3,700,000" in lines[tables[0]]
    assert [line.split()[0] for line in lines[tables[0] : tables[0] + 10]] == [row.name for row in rows]
    assert lines[tables[0] + 11].startswith("other loss:") and lines[tables[0] + 12].startswith("short ")
    (verdict,) = [line for line in lines if line.startswith("Verdict: ")]
    assert "no single one" in verdict


def test_the_order_is_of_numbers() -> None:
    names = ["run/checkpoint-1000", "run/checkpoint-200", "run/final", "a"]
    assert sorted(names, key=natural) == ["a", "run/checkpoint-200", "run/checkpoint-1000", "run/final"]


def test_the_verdict_is_one_line() -> None:
    def made(name: str, **values: Any) -> Measures:
        return dataclasses.replace(FOUND, name=name, loss=0.1, kl_complexity_stderr=0.1, **values)

    def said(*rows: Measures) -> str:
        return verdict(rows, orders(rows))

    low, high = made("low", kl_complexity=1.0), made("high", kl_complexity=9.0)
    assert said(high, low) == "low is lowest by K(η), of 2 runs of equal training loss."
    near = made("near", kl_complexity=1.1)
    assert said(high, near, low) == "no single one: low ≈ near are lowest by K(η), and cannot be told apart."
    unknown = dataclasses.replace(low, kl_complexity_stderr=None)
    assert "whether it can be told from high is unknown" in said(unknown, high)
    relative = [
        dataclasses.replace(row, relative_sharpness=value, relative_sharpness_stderr=0.1)
        for row, value in ((low, 5.0), (high, 1.0))
    ]
    assert said(*relative).endswith("By relative sharpness it is high: the two do not agree.")
    tied = [dataclasses.replace(row, relative_sharpness_stderr=9.0) for row in relative]
    assert said(*tied) == "low is lowest by K(η), of 2 runs of equal training loss."  # no order to disagree with
    assert "others are 0.1 to 0.1" in said(low, high, dataclasses.replace(low, name="apart", loss=3.0))
    assert said(low, dataclasses.replace(low, name="apart", loss=3.0)).startswith("No run is ranked")
