"""``hf-pacgen promise`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import saved_models
import torch
from command_runs import Run, refused, write_csv
from promised import NAMES, texts
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_pacgen.command_line.main import main
from hf_pacgen.maths.held_out_bounds import exact_error_bound
from hf_pacgen.promises import FILE, SelectiveClassifier
from hf_pacgen.results.promise import Promise


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained classifier, one at random, what it was trained on, and what it never saw."""
    folder = tmp_path_factory.mktemp("promise")
    place = saved_models.bert(folder / "model", **NAMES)
    model: Any = AutoModelForSequenceClassification.from_pretrained(place)
    tokens = AutoTokenizer.from_pretrained(place)
    training = texts(0, 200)
    batch = tokens([text for text, _ in training], padding=True, return_tensors="pt")
    labels = torch.tensor([int(label == "positive") for _, label in training])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(place)
    return {
        "model": place,
        "random": saved_models.bert(folder / "random", **NAMES),
        "train": write_csv(folder / "train.csv", training),
        "test": write_csv(folder / "test.csv", texts(200, 300)),
        "mixed": write_csv(folder / "mixed.csv", texts(150, 100)),
        "empty": write_csv(folder / "empty.csv", []),
        "strange": write_csv(folder / "strange.csv", [("good movie", "neutral"), ("bad", "mixed")]),
    }


QUICK = ["--no-progress", "--batch-size", "100"]


def test_a_promise_from_one_command(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "new" / "promise.json"
    code, out, _ = run("promise", files["model"], "--held-out", files["test"], *QUICK, "--output", output)
    result = Promise.load(output)
    assert code == 0 and result.num_errors is not None and result.num_examples == 300
    assert result.error_bound == exact_error_bound(result.num_errors, 300, 0.05)
    assert " ".join(result.statement.split()) in out and f"Written to {output}" in out
    assert f"of {files['test']}, the model {files['model']} (weights" in result.statement
    assert result.origin["command"].startswith("hf-pacgen promise") and "give --training-data" in out
    for phrase in ("held-out error", "Clopper-Pearson", "probability that any of this fails"):
        assert phrase in out
    assert not (files["model"] / FILE).exists()
    again = run("promise", files["model"], "--dataset", files["test"], *QUICK, "--output", "-")
    assert json.loads(again[1])["error_bound"] == result.error_bound


def test_a_threshold_lies_beside_the_model(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    words = ["promise", files["model"], "--held-out", files["test"], "--training-data", files["train"], *QUICK]
    code, out, _ = run(*words, "--max-error", "0.2", "--plot", tmp_path / "curve.png")
    assert code == 0 and f"Written to {files['model'] / FILE}" in out and (tmp_path / "curve.png").is_file()
    assert "least confidence at which to answer" in out and "of each bound" in out
    assert "was not looked at" not in out
    model = AutoModelForSequenceClassification.from_pretrained(files["model"])
    selective = SelectiveClassifier.load(model, files["model"])
    assert selective.rule == "abstain" and f"{selective.threshold:.6g}" in out
    code, out, _ = run(*words, "--coverage", "0.9", "--quiet")
    assert code == 0 and not out and Promise.load(files["model"] / FILE).rule == "sets"
    (files["model"] / FILE).unlink()


def test_a_folder_that_cannot_be_written_to(run: Run, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("hf_pacgen.results.base.write_atomically", full)
    words = ["promise", files["model"], "--held-out", files["test"], *QUICK, "--coverage", "0.9"]
    code, out, err = run(*words)
    assert code == 2 and "hold the label" in out  # what was found is shown all the same
    assert "The threshold cannot be written beside the model" in err and "No space left on device" in err


def test_several_models_are_candidates(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    words = [files["random"], files["model"], "--held-out", files["test"], *QUICK, "--output", tmp_path / "p.json"]
    code, out, _ = run("promise", *words)
    result = Promise.load(tmp_path / "p.json")
    assert code == 0 and result.num_candidates == 2 and result.num_errors is not None
    assert result.error_bound == exact_error_bound(result.num_errors, 300, 0.025)
    assert f"the best of 2 models, {files['model']} (weights" in result.statement
    assert "compared on these examples, and paid for" in out


def test_what_may_not_be_promised(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    model, test = files["model"], ["--held-out", files["test"], *QUICK]
    refused(run, "50 of the 100 held-out examples also stand in the training data", "promise", model, "--held-out",
            files["mixed"], "--training-data", files["train"], *QUICK)  # fmt: skip
    refused(run, "has no rows: there is nothing to score", "promise", model, "--held-out", files["empty"], *QUICK)
    refused(run, "neutral|mixed", "promise", model, "--held-out", files["strange"], *QUICK)
    refused(run, r"delta must be in \(0, 1\)", "promise", model, *test, "--delta", "1.5")
    refused(
        run, "candidates=301 were compared on 300 held-out examples", "promise", model, *test, "--candidates", "301"
    )
    refused(run, "--max-error 0.001 needs at least", "promise", model, *test, "--max-error", "0.001")
    refused(run, "--max-error and --?coverage|max-error and coverage", "promise", model, *test, "--max-error", "0.1",
            "--coverage", "0.9")  # fmt: skip
    refused(run, "--plot draws the errors among the answers: it needs --max-error", "promise", model, *test, "--plot",
            tmp_path / "a.png")  # fmt: skip
    refused(run, "--candidates is the number of models where one is given", "promise", model, files["random"], *test,
            "--candidates", "2")  # fmt: skip
    refused(run, "required: --dataset/--held-out", "promise", model)
    refused(run, "invalid choice: 'accuracy'|one of", "promise", model, *test, "--loss", "accuracy")
    refused(run, "cannot be read as the state of a training run", "promise", model, *test, "--trainer-state", "nowhere")


def test_models_of_other_tasks(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "texts.csv", [(text, 0) for text, _ in texts(0, 20)], ("text", "unused"))
    words = ["promise", models["language model"], "--held-out", rows, "--text-column", "text", *QUICK]
    refused(run, "GPT2LMHeadModel writes text, and nobody but you knows which text is an error", *words)
    code, out, _ = run(*words, "--loss", "token_error")
    assert code == 0 and "20 held-out sequences" in out and "mean token_error" in out
    numbers = write_csv(tmp_path / "numbers.csv", [(text, 0.5 * i) for i, (text, _) in enumerate(texts(0, 20))])
    refused(run, "is a regression model", "promise", models["regression"], "--held-out", numbers, *QUICK)


def test_held_out_data_is_not_the_training_split(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    parts = {
        name: datasets.Dataset.from_dict(
            {"text": [t for t, _ in rows], "label": [int(y == "positive") for _, y in rows]}
        )
        for name, rows in (("train", texts(0, 30)), ("validation", texts(30, 20)), ("test", texts(60, 25)))
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "all"))
    datasets.DatasetDict({k: v for k, v in parts.items() if k != "test"}).save_to_disk(str(tmp_path / "two"))
    for folder, count in (("all", 25), ("two", 20)):
        code, out, _ = run("promise", files["model"], "--held-out", tmp_path / folder, *QUICK)
        assert code == 0 and f"over the draw of the {count} held-out examples" in out
    words = ["promise", files["model"], "--held-out", tmp_path / "all", "--training-data", tmp_path / "all", *QUICK]
    assert run(*words)[0] == 0  # the training data is the split of that name
    refused(run, "25 of the 25 held-out examples also stand", *words, "--training-split", "test")
    datasets.DatasetDict({"train": parts["train"], "dev": parts["test"]}).save_to_disk(str(tmp_path / "odd"))
    refused(run, "has no split 'test'; it has train, dev. Choose one that the model never saw with --split", "promise",
            files["model"], "--held-out", tmp_path / "odd", *QUICK)  # fmt: skip


def test_a_data_set_without_rows(run: Run, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).select([])
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **more: nothing)
    message = "has no rows: there is nothing to score. Give labeled examples that the model never saw"
    refused(run, message, "promise", files["model"], "--held-out", "user/tweets", *QUICK)


def test_help_names_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["promise", "--help"])
    text = capsys.readouterr().out
    for flag in ("--held-out", "--dataset", "--delta", "--loss", "--candidates", "--training-data", "--max-error"):
        assert flag in text
