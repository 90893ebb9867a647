"""``hf-pacgen compare`` as a user meets it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import datasets
import pytest
from command_runs import ROWS, Run, refused

from hf_pacgen.command_line.compare import correlations, short_names


def test_compare_prints_and_writes_all_measures(run: Run, runs: list[Path], tmp_path: Path) -> None:
    base = runs[0].parents[1]
    data = ("--dataset", base / "train.csv", "--eval-dataset", base / "test.csv", "--no-progress")
    files = ("--json", tmp_path / "m.json", "--csv", tmp_path / "m.csv")
    code, out, _ = run("compare", *runs, *data, *files, "--draws", 4, "--lipschitz-directions", 1)
    assert code == 0
    for label in ("Ψ", "Ψ/m", "K(η)", "active fraction", "trace", "λ_max", "ρ", "expected sharpness", "‖w‖", "gap"):
        assert label in out
    assert "run0/" in out and "rank corr. with gap" in " ".join(out.split()) and "test loss" in out
    whole = json.loads((tmp_path / "m.json").read_text())
    with (tmp_path / "m.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"run{i}/checkpoint-9" for i in range(3)]
    for row, values in zip(rows, whole["runs"], strict=True):
        assert float(row["kl_complexity"]) == values["kl_complexity"]
        assert values["gap"] == pytest.approx(values["test_loss"] - values["loss"])
        assert values["num_examples"] == 5 and values["eta"] == 5
    assert set(whole["rank_correlation_with_gap"]) <= set(rows[0]) and "loss" in whole["rank_correlation_with_gap"]


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
