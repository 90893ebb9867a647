"""``hf-pacgen sharpness`` as a user meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pytest
import saved_models
from command_runs import ROWS, Run, refused
from transformers import AutoModelForSequenceClassification

from hf_pacgen import SharpnessConfig, expected_sharpness
from hf_pacgen.command_line.sharpness import _rows


def test_sharpness_prints_and_writes_what_the_functions_return(run: Run, runs: list[Path], tmp_path: Path) -> None:
    base, model_folder = runs[0].parents[1], runs[1]
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


def test_relative_sharpness_by_level(run: Run, runs: list[Path], tmp_path: Path) -> None:
    base = runs[0].parents[1]
    words = ("sharpness", runs[1], "--dataset", base / "train.csv", "--no-progress", "--relative", "--noise-scale", 0)
    alone = ("--box", 0, "--eigenvalues", 0, "--output", tmp_path / "s.json")
    code, out, _ = run(*words, *alone, "--levels", 0.1, 0.4)
    assert code == 0 and "relative sharpness, 0.1" in out and "relative sharpness, 0.4" in out
    found = json.loads((tmp_path / "s.json").read_text())["relative"]
    assert found["levels"] == [0.1, 0.4] and found["means"][1] == found["relative_sharpness"] and " ± " in out
    code, out, _ = run(*words, *alone)
    assert code == 0 and json.loads((tmp_path / "s.json").read_text())["relative"]["levels"] == [0.03, 0.1, 0.3, 1.0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{0}"], "required: --dataset. Usage: hf-pacgen sharpness MODEL"),
        (["{0}", "--dataset", "{train}", "--noise-scale", "-1"], "--noise-scale must be a finite number"),
        (["{0}", "--dataset", "{train}", "--noise-scale", "1e30"], "With the noise on the weights: The"),
        (["{0}", "--dataset", "{train}", "--eigenvalues", "-1"], "eigenvalues must be an integer of at l"),
        (["{0}", "--dataset", "{train}", "--distribution", "cauchy"], "invalid choice: 'cauchy'"),
        (["{0}", "--dataset", "{train}", "--levels", "0.1"], "which is not asked for. Add --relative"),
        (["{0}", "--dataset", "{train}", "--relative", "--levels", "0"], "levels must be a list of positive"),
        (["{0}", "--dataset", "{train}", "--output", "."], "--output '.' is a folder"),
        (
            ["{0}", "--dataset", "{train}", "--noise-scale", "0", "--box", "0", "--eigenvalues", "0"],
            "are all 0: there is nothing to measure",
        ),
    ],
)
def test_bad_words(run: Run, runs: list[Path], words: list[str], message: str) -> None:
    names = {"0": str(runs[0]), "train": str(runs[0].parents[1] / "train.csv")}
    filled = [re.sub(r"\{(\w+)\}", lambda found: names[found[1]], word) for word in words]
    refused(run, message, "sharpness", *filled, "--no-progress")


def test_a_result_of_a_kind_that_is_not_shown_yet() -> None:
    with pytest.raises(TypeError, match="There are no rows for a str yet: say here which"):
        _rows("none")  # type: ignore[arg-type]
