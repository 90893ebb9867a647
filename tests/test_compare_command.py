"""``hf-pacgen compare`` and ``hf-pacgen sharpness`` as a user meets them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import saved_models
import torch
from transformers import AutoModelForSequenceClassification

from hf_pacgen import SharpnessConfig, expected_sharpness
from hf_pacgen.command_line.compare import correlations, short_names
from hf_pacgen.command_line.main import main

ROWS = [("good movie", 1), ("awful food was bad", 0), ("very fine", 1), ("not good", 0), ("a bad movie", 0)]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command; get its exit code, and what it printed and complained of, each on one line."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, " ".join(re.sub("[│┃]", " ", out).split()), err

    return call


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of one checkpoint each, and data in a file with two parts."""
    folder = tmp_path_factory.mktemp("runs")
    for name, rows in (("train", ROWS), ("test", [(text, 1 - label) for text, label in ROWS])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    for number in range(3):
        path = saved_models.bert(folder / f"run{number}" / "checkpoint-9")
        model = AutoModelForSequenceClassification.from_pretrained(path)
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * number * torch.randn_like(parameter))
        model.save_pretrained(path)
    return folder


def runs(base: Path, count: int = 3) -> list[Path]:
    return [base / f"run{number}" / "checkpoint-9" for number in range(count)]


def test_compare_prints_and_writes_all_measures(run: Run, base: Path, tmp_path: Path) -> None:
    data = ("--dataset", base / "train.csv", "--eval-dataset", base / "test.csv", "--no-progress")
    files = ("--json", tmp_path / "m.json", "--csv", tmp_path / "m.csv")
    code, out, _ = run("compare", *runs(base), *data, *files, "--draws", 4, "--lipschitz-directions", 1)
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


def test_compare_without_test_data_and_with_a_split_as_test_data(run: Run, base: Path, tmp_path: Path) -> None:
    words = ("compare", *runs(base, 2), "--no-progress", "--draws", 2, "--lipschitz-directions", 0)
    code, out, _ = run(*words, "--dataset", base / "train.csv", "--csv", tmp_path / "m.csv")
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


def test_sharpness_prints_and_writes_what_the_functions_return(run: Run, base: Path, tmp_path: Path) -> None:
    (model_folder,) = runs(base, 2)[1:]
    words = ("sharpness", model_folder, "--dataset", base / "train.csv", "--no-progress", "--batch-size", 4)
    code, out, _ = run(*words, "--noise-scale", 0.05, "--distribution", "uniform", "--output", tmp_path / "s.json")
    assert code == 0
    for phrase in ("expected sharpness", "uniform noise of scale 0.05", "worst-case rise", "λ_5", "trace", "residual"):
        assert phrase in out
    values = json.loads((tmp_path / "s.json").read_text())
    model, encode = AutoModelForSequenceClassification.from_pretrained(model_folder), saved_models.tokenizer()
    rows = datasets.Dataset.from_list([{**encode(text), "labels": label} for text, label in ROWS])
    config = SharpnessConfig(distribution="uniform")  # type: ignore[arg-type]
    expected = expected_sharpness(model, rows, noise_scale=0.05, config=config, batch_size=4, progress=False)
    assert values["expected"]["mean"] == pytest.approx(expected.mean, rel=1e-3)
    assert len(values["spectrum"]["eigenvalues"]) == 5 and values["worst_case"]["value"] > 0
    few = (*words, "--eigenvalues", 3, "--iterations", 3, "--box", 0, "--noise-scale", 0, "--probes", 0)
    code, out, _ = run(*few)
    assert code == 0 and "NOT CONVERGED" in out and "did not converge in 3 Lanczos steps" in out
    assert "worst-case" not in out and "expected" not in out and "trace" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare"], "required: --dataset, RUN. Usage: hf-pacgen compare RUN1 RUN2"),
        (["compare", "{0}", "{0}", "--dataset", "{train}"], "is given twice: expected different ones"),
        (["compare", "{0}", "--dataset", "{train}", "--eval-dataset", "no.csv"], "'no.csv' does not exist"),
        (["compare", "{0}", "--dataset", "{train}", "--csv", "no/m.csv"], "--csv 'no/m.csv': the folder 'no'"),
        (["compare", "{0}", "--dataset", "{train}", "--json", "no/m.json"], "--json 'no/m.json': the folder 'no'"),
        (["compare", "{0}", "./gone", "--dataset", "{train}"], "model folder './gone' does not exist"),
        (["compare", "{0}", "--dataset", "{train}", "--draws", "0"], "draws must be an integer of at least 1; got 0"),
        (
            ["compare", "{0}", "--dataset", "{train}", "--iterations", "0"],
            "iterations must be an integer of at least 1",
        ),
        (["sharpness", "{0}"], "required: --dataset. Usage: hf-pacgen sharpness MODEL"),
        (["sharpness", "{0}", "--dataset", "{train}", "--noise-scale", "-1"], "--noise-scale must be a finite number"),
        (["sharpness", "{0}", "--dataset", "{train}", "--noise-scale", "1e30"], "With the noise on the weights: The"),
        (["sharpness", "{0}", "--dataset", "{train}", "--eigenvalues", "-1"], "eigenvalues must be an integer of at l"),
        (["sharpness", "{0}", "--dataset", "{train}", "--distribution", "cauchy"], "invalid choice: 'cauchy'"),
        (["sharpness", "{0}", "--dataset", "{train}", "--output", "."], "--output '.' is a folder"),
        (
            ["sharpness", "{0}", "--dataset", "{train}", "--noise-scale", "0", "--box", "0", "--eigenvalues", "0"],
            "are all 0: there is nothing to measure",
        ),
    ],
)
def test_bad_words(run: Run, base: Path, words: list[str], message: str) -> None:
    names = {"0": runs(base)[0], "train": base / "train.csv"}
    code, out, err = run(*[re.sub(r"\{(\w+)\}", lambda m: str(names[m[1]]), w) for w in words], "--no-progress")
    assert code == 2 and not out and err.startswith("hf-pacgen: error: ") and err.count("\n") == 1
    assert re.search(message, err), err
