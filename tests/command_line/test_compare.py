"""``hf-pacgen compare`` as a user meets it."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from command_runs import ROWS, Run, refused

from hf_pacgen.command_line.compare import _save_json, correlations, print_comparison, short_names
from hf_pacgen.results.measures import Measures

FIXTURES = Path(__file__).parents[1] / "results" / "fixtures"
FOUND = Measures.from_dict(json.loads((FIXTURES / "compare-0.1.json").read_text())["runs"][0])


def test_compare_prints_and_writes_all_measures(run: Run, runs: list[Path], tmp_path: Path) -> None:
    base = runs[0].parents[1]
    data = ("--dataset", base / "train.csv", "--eval-dataset", base / "test.csv", "--no-progress")
    files = ("--json", tmp_path / "m.json", "--csv", tmp_path / "m.csv")
    code, out, _ = run("compare", *runs, *data, *files, "--draws", 4, "--lipschitz-directions", 1)
    assert code == 0
    for label in (
        "Ψ",
        "Ψ/m",
        "K(η)",
        "K(η) beyond size",
        "K(η) of curvature",
        "trace",
        "λ_max",
        "ρ",
        "expected sharpness",
        "‖w‖",
        "gap",
    ):
        assert label in out
    assert "relative sharpness" in out
    assert "run0/" in out and "test loss" in out and "left unranked" in out  # of random models, the losses differ
    whole = json.loads((tmp_path / "m.json").read_text())
    with (tmp_path / "m.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"run{i}/checkpoint-9" for i in range(3)]
    for row, values in zip(rows, whole["runs"], strict=True):
        assert float(row["kl_complexity"]) == values["kl_complexity"]
        assert values["gap"] == pytest.approx(values["test_loss"] - values["loss"])
        assert values["num_examples"] == 5 and values["eta"] == 5
    assert set(values["relative_sharpness_by_level"]) == {"0.03", "0.1", "0.3", "1"}
    assert values["relative_sharpness_by_level"]["0.3"] == values["relative_sharpness"]
    assert len(whole["ranked"]) == 2 and whole["rank_correlation_with_gap"] == {}


def test_compare_without_test_data_and_with_a_split_as_test_data(run: Run, runs: list[Path], tmp_path: Path) -> None:
    words = ("compare", *runs[:2], "--no-progress", "--draws", 2, "--lipschitz-directions", 0)
    code, out, _ = run(*words, "--dataset", runs[0].parents[1] / "train.csv", "--csv", tmp_path / "m.csv")
    assert code == 0 and "test loss" not in out and "rank corr." not in out
    with (tmp_path / "m.csv").open() as file:
        assert {row["gap"] for row in csv.DictReader(file)} == {""}
    table = datasets.Dataset.from_list([{"text": text, "label": label} for text, label in ROWS])
    datasets.DatasetDict({"train": table, "held": table.select([0, 1])}).save_to_disk(str(tmp_path / "data"))
    code, out, _ = run(*words, "--dataset", tmp_path / "data", "--eval-split", "held", "--json", tmp_path / "m.json")
    assert code == 0 and "test loss" in out
    assert all(abs(found["gap"]) > 1e-4 for found in json.loads((tmp_path / "m.json").read_text())["runs"])


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
        "rank corr. with gap" in out
        and "best ≈ even < last" in out
        and "even ? best ? last" in out
        and "1.2 ± 0.1" in out
    )
    assert "≈: not distinguishable, since the 95 % intervals overlap." in out
    assert "?: a standard error is unknown, so ties cannot be judged." in out
    assert "short (0.6) is left unranked: the training losses of the others are 0.09 to 0.11" in out
    # the run that stopped too early does not count for the rank correlation either
    assert correlations(rows)["relative_sharpness"] == 1 and correlations(rows)["kl_complexity"] == 0.5
    _save_json(rows, str(tmp_path / "m.json"))
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


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names(["a/x", "b/y"]) == ["x", "y"] and short_names(["a/x", "b/x"]) == ["a/x", "b/x"]
    assert short_names(["x"]) == ["x"] and correlations([]) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: --dataset, RUN. Usage: hf-pacgen compare RUN1 RUN2"),
        (["{0}", "{0}", "--dataset", "{train}"], "is given twice: expected different ones"),
        (["{0}", "--dataset", "{train}", "--eval-dataset", "no.csv"], "'no.csv' does not exist"),
        (["{0}", "--dataset", "{train}", "--csv", "no/m.csv"], "--csv 'no/m.csv': the folder 'no'"),
        (["{0}", "--dataset", "{train}", "--json", "no/m.json"], "--json 'no/m.json': the folder 'no'"),
        (["{0}", "./gone", "--dataset", "{train}"], "model folder './gone' does not exist"),
        (["{0}", "--dataset", "{train}", "--draws", "0"], "draws must be an integer of at least 1; got 0"),
        (
            ["{0}", "--dataset", "{train}", "--iterations", "0"],
            "iterations must be an integer of at least 1",
        ),
    ],
)
def test_bad_words(run: Run, runs: list[Path], words: list[str], message: str) -> None:
    names = {"0": str(runs[0]), "train": str(runs[0].parents[1] / "train.csv")}
    filled = [re.sub(r"\{(\w+)\}", lambda found: names[found[1]], word) for word in words]
    refused(run, message, "compare", *filled, "--no-progress")
