"""``hf-pacgen score`` as a user meets it: what it prints and what it writes."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import saved_models
from command_runs import QUICK, ROWS, Run, refused, write_csv
from transformers import AutoModelForSequenceClassification

from hf_pacgen import PACGenResult, Plan, ScoreConfig, pacgen


def test_score_prints_and_writes_what_pacgen_returns(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv")
    code, out, _ = run("score", models["classifier"], "--dataset", data, *QUICK, "--output", tmp_path / "result.json")
    assert code == 0
    result = PACGenResult.load(tmp_path / "result.json")

    model = AutoModelForSequenceClassification.from_pretrained(models["classifier"])
    encode = saved_models.tokenizer()
    rows = datasets.Dataset.from_list([{**encode(text), "labels": label} for text, label in ROWS])
    expected = pacgen(model, rows, config=ScoreConfig(lipschitz_directions=0), progress=False)
    assert result.score == pytest.approx(expected.score, rel=1e-6)
    assert result.kl_complexity == pytest.approx(expected.kl_complexity, rel=1e-4)
    assert (result.num_examples, result.num_units, result.eta) == (5, 5, 5)
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)

    for phrase in (
        "Ψ",
        "K(η)",
        "made of",
        "K(η) of curvature",
        "Hessian trace",
        "lower is better",
        "trainable parameters",
    ):
        assert phrase in out
    assert "text -> label; 5 rows" in out and f"{result.num_parameters:,}" in out
    assert f"Written to {tmp_path / 'result.json'}" in out
    assert all(sentence in out for sentence in result.status)


@pytest.mark.parametrize("flag", ["--epsilon_scale", "--epsilon-scale"])
def test_epsilon_as_a_part_of_each_tensor(flag: str, run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data, output = write_csv(tmp_path / "train.csv"), tmp_path / "r.json"
    common = ("score", models["classifier"], "--dataset", data, *QUICK, "--output", output)
    assert run(*common, "--epsilon", "0.1")[0] == 0
    absolute = PACGenResult.load(output)
    assert run(*common, "--epsilon", "0.1", flag, "rms")[0] == 0
    relative = PACGenResult.load(output)
    assert (absolute.config["epsilon_scale"], relative.config["epsilon_scale"]) == ("absolute", "rms")
    # 0.1 is more than a tenth of these weights, so the box is wider, and size counts for less
    assert absolute.kl_parts["weights"] != pytest.approx(relative.kl_parts["weights"], rel=0.1)
    assert absolute.kl_curvature == pytest.approx(relative.kl_curvature)  # no ε in it
    code, _, error = run(*common, flag, "percent")
    assert code == 2 and "'absolute', 'rms'" in error and "percent" in error


def test_regression(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv", [(text, label - 0.25) for text, label in ROWS])
    code, out, _ = run("score", models["regression"], "--dataset", data, *QUICK)
    assert code == 0 and "blend estimate" in out


def test_several_files_subset_and_eta(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    files = [write_csv(tmp_path / f"{part}.csv") for part in "ab"]
    output = tmp_path / "r.json"
    common = ("score", models["classifier"], "--dataset", *files, "--max_examples", 4, *QUICK, "--output", output)
    assert run(*common)[0] == 0
    result = PACGenResult.load(output)
    assert (result.num_examples, result.eta) == (4, 10)  # η = n is that of all the training data
    assert run(*common, "--eta", "2.5", "--dtype", "float64")[0] == 0
    assert PACGenResult.load(output).eta == 2.5


def test_a_dry_run_says_what_the_score_takes(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data, output = write_csv(tmp_path / "train.csv"), tmp_path / "plan.json"
    common = ("score", models["classifier"], "--dataset", data, *QUICK, "--passes", 2, "--output", output)
    code, out, _ = run(*common, "--dry-run", "--processes", 1, 4)
    assert code == 0 and "Peak memory of each" in out and "sharded" in out
    made = Plan.load(output)
    assert made.seconds is not None and made.layout(4)["wire_bytes"] > 0
    assert run(*common)[0] == 0
    assert PACGenResult.load(output).num_hvps == made.num_hvps


def test_a_dry_run_of_a_configuration_alone(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    folder, data, output = tmp_path / "bare", write_csv(tmp_path / "train.csv"), tmp_path / "plan.json"
    shutil.copytree(models["classifier"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    common = ("score", folder, "--dataset", data, *QUICK, "--output", output, "--dry-run")
    code, out, _ = run(*common)
    made = Plan.load(output)
    assert code == 0 and "has no weights, so the plan is made of its config.json alone" in out and made.seconds is None
    other = tmp_path / "other.json"
    assert run("score", models["classifier"], *common[2:5], "--dry-run", "--output", other)[0] == 0
    assert Plan.load(other).num_parameters == made.num_parameters
    # the same without reading the weights that are there
    text = write_csv(tmp_path / "texts.csv", [(text,) for text, _ in ROWS], ("text",))
    words = ("score", models["language model"], "--dataset", text, *QUICK, "--dry-run", "--device", "meta")
    assert run(*words, "--dtype", "auto", "--output", other)[0] == 0 and Plan.load(other).seconds is None


def test_flags_of_a_dry_run_that_do_not_fit(
    run: Run, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("score", models["classifier"], "--dataset", write_csv(tmp_path / "train.csv"))
    meta = ("--dry-run", "--device", "meta")
    refused(run, "--processes is for --dry-run; torchrun starts", *words, "--processes", 2)
    refused(run, "--device meta has no weights to score: it is for --dry-run", *words, "--device", "meta")
    refused(run, "is to be loaded in 4 bits, which needs weights", *words, *meta, "--load-in-4bit")
    refused(run, "processes must be an integer of at least 1", *words, "--dry-run", "--processes", 0)
    monkeypatch.setattr("hf_pacgen.command_line.run_options.Accelerator", lambda **_: SimpleNamespace(device="cpu"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(run, "--dry-run plans in one process: start it without torchrun", *words, "--dry-run")
