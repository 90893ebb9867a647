"""``hf-pacgen compare`` as a user meets it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import saved_models
import task_models as m
import torch
from command_runs import ROWS, Run, refused, write_csv

import hf_pacgen.command_line.inputs.load
from hf_pacgen import pacgen
from hf_pacgen.command_line.compare import short_names
from hf_pacgen.command_line.comparison_file import correlations
from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.command_line.inputs.load import load_subject
from hf_pacgen.command_line.inputs.models import ModelArguments
from hf_pacgen.command_line.main import main
from hf_pacgen.results.measures import Measures

FIXTURES = Path(__file__).parents[1] / "results" / "fixtures"
FOUND = Measures.from_dict(json.loads((FIXTURES / "compare-0.1.json").read_text())["runs"][0])


def test_compare_prints_and_writes_all_measures(run: Run, runs: list[Path], tmp_path: Path) -> None:
    base = runs[0].parents[1]
    data = ("--dataset", base / "train.csv", "--eval-dataset", base / "test.csv", "--no-progress")
    files = ("--output", tmp_path / "new" / "m.json", "--csv", tmp_path / "m.csv", "--plot", tmp_path / "m.png")
    words = ("--measures", "all", "--draws", 4, "--lipschitz-directions", 1)
    code, out, _ = run("compare", *runs, *data, *files, *words)
    assert code == 0
    for label in (
        "Ψ",
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
    whole = json.loads((tmp_path / "new" / "m.json").read_text())
    assert (tmp_path / "m.png").read_bytes()[:4] == b"\x89PNG"
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
    words = ("compare", *runs[:2], "--no-progress", "--lipschitz-directions", 0)
    code, out, _ = run(*words, "--dataset", runs[0].parents[1] / "train.csv", "--csv", tmp_path / "m.csv")
    assert code == 0 and "test loss" not in out and "Rank corr" not in out
    with (tmp_path / "m.csv").open() as file:
        assert {row["gap"] for row in csv.DictReader(file)} == {""}
    table = datasets.Dataset.from_list([{"text": text, "label": label} for text, label in ROWS])
    datasets.DatasetDict({"train": table, "held": table.select([0, 1])}).save_to_disk(str(tmp_path / "data"))
    code, out, err = run(*words, "--dataset", tmp_path / "data", "--eval-split", "held", "--json", tmp_path / "m.json")
    assert code == 0 and "test loss" in out and "--json is deprecated; it is called --output now" in err
    assert all(abs(found["gap"]) > 1e-4 for found in json.loads((tmp_path / "m.json").read_text())["runs"])


def test_test_data_has_the_labels_of_the_training_data_and_no_model_of_its_own(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = saved_models.bert(tmp_path / "base", head=False)
    rows = [("good movie", "a"), ("bad food", "b"), ("awful", "c")]
    # the middle name comes first in the test data alone
    for name, some in (("train", rows), ("test", rows[1:]), ("odd", [("good", "d")])):
        write_csv(tmp_path / f"{name}.csv", some)
    loaded: list[str] = []
    load = hf_pacgen.command_line.inputs.load.load_model

    def counted(name: str, *given: Any, **named: Any) -> Any:
        loaded.append(name)
        return load(name, *given, **named)

    monkeypatch.setattr(hf_pacgen.command_line.inputs.load, "load_model", counted)
    words = ("compare", base, "--dataset", tmp_path / "train.csv", "--random-head", "--lipschitz-directions", 0)
    assert run(*words, "--eval-dataset", tmp_path / "test.csv", "--output", tmp_path / "m.json")[0] == 0
    assert len(loaded) == 1
    (found,) = json.loads((tmp_path / "m.json").read_text())["runs"]
    model, examples, _ = load_named_with_head(base, tmp_path / "train.csv")
    expected = pacgen(model, torch.utils.data.Subset(examples, [1, 2]), config=m.QUICK, progress=False).loss
    assert found["test_loss"] == pytest.approx(expected, rel=1e-5)
    refused(run, "label 'd' .*none of those in the training data", *words, "--eval-dataset", tmp_path / "odd.csv")


def load_named_with_head(folder: Path, data: Path) -> tuple[Any, Any, Any]:
    found = load_subject(
        str(folder), ModelArguments(random_head=True), DataArguments(dataset=[str(data)]), device=torch.device("cpu")
    )
    return found.model, found.examples, found.notes


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names(["a/x", "b/y"]) == ["x", "y"] and short_names(["a/x", "b/x"]) == ["a/x", "b/x"]
    assert short_names(["x"]) == ["x"] and correlations([]) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: --dataset, RUN. Usage: hf-pacgen compare RUN1 .RUN2 ...."),
        (["{0}", "{0}", "--dataset", "{train}"], "is given twice: expected different ones"),
        (["{0}", "--dataset", "{train}", "--eval-dataset", "no.csv"], "'no.csv' does not exist"),
        (["{0}", "--dataset", "{train}", "--csv", "{train}/m.csv"], "--csv '.*m.csv': the folder '.*' cannot be made"),
        (["{0}", "--dataset", "{train}", "--csv", "-"], "--csv -: only --output goes to standard output"),
        (["{0}", "--dataset", "{train}", "--json", "a", "--output", "b"], "--json is the old name of --output: give o"),
        (["{0}", "--dataset", "{train}", "--output", "{train}"], "exists, and is no comparison: it would be overwritt"),
        (
            ["{0}", "--dataset", "{train}", "--measures", "spectra"],
            "has 'spectra': expected 'all', or some of scor",
        ),
        (
            ["{0}", "--dataset", "{train}", "--draws", "3"],
            "--draws is of sharpness, which is not measured. Add --mea",
        ),
        (["{0}", "--dataset", "{train}", "--plot", "a.xyz"], "--plot 'a.xyz': expected a file that ends in .png, .svg"),
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


def test_standard_output_has_the_json_alone(runs: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    words = ("--dataset", runs[0].parents[1] / "train.csv", "--lipschitz-directions", "0", "--output", "-")
    assert main(["compare", str(runs[0]), *map(str, words)]) == 0
    out, err = capfd.readouterr()
    assert len(json.loads(out)["runs"]) == 1 and "K(η)" in err and "batches" not in err
    assert main(["score", str(runs[0]), *map(str, words), "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["num_examples"] == 5 and not err
    assert main(["score", str(runs[0]), *map(str, words[:-2])]) == 0
    out, err = capfd.readouterr()
    assert "K(η)" in out and not err  # no bars where standard error is no terminal
