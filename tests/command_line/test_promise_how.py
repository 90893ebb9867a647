"""``hf-pacgen promise --how``: from labeled data and a training function to a model with its promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import saved_models
import torch
from command_runs import Run, refused, write_csv
from promised import NAMES, texts
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_pacgen.promises.expected import expected_promises, share_out
from hf_pacgen.results.certificate import rounded_up

TRAIN = """
import torch
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments


def fit(model, part):
    rows = [part[i] for i in range(len(part))]
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([list(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
    labels = torch.tensor([int(row.get("labels", row.get("label"))) for row in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss.backward()
        optimizer.step()


NUMBER = 3
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("how")
    script = folder / "my_training.py"
    script.write_text(TRAIN)
    return {
        "model": saved_models.bert(folder / "model", **NAMES),
        "data": write_csv(folder / "labeled.csv", texts(0, 160)),
        "more": write_csv(folder / "more.csv", texts(160, 100)),
        "script": f"{script}:fit",
        "folder": folder,
    }


def words(files: dict[str, Any], how: str, place: Path, *more: object) -> list[object]:
    return [
        *("promise", files["model"], "--held-out", files["data"], "--how", how, "--train", files["script"]),
        *("--save-models", place, "--no-progress", "--batch-size", "50", *more),
    ]


def test_a_split_gives_a_model_with_its_promise(run: Run, files: dict[str, Any], tmp_path: Path) -> None:
    code, out, err = run(*words(files, "split", tmp_path / "out", "--output", tmp_path / "p.json"))
    assert code == 0, err
    saved = json.loads((tmp_path / "out" / "promise.json").read_text())
    assert saved == json.loads((tmp_path / "p.json").read_text())
    assert saved["num_examples"] == 80 and saved["statement"] in " ".join(out.split())
    # what each way would promise stands above
    for row in expected_promises(160):
        assert rounded_up(row.error_bound) in out
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    untrained = AutoModelForSequenceClassification.from_pretrained(files["model"])
    assert not torch.equal(model.classifier.weight, untrained.classifier.weight)
    # the folder can be used by itself
    tokenizers = [AutoTokenizer.from_pretrained(place) for place in (tmp_path / "out", files["model"])]
    assert tokenizers[0]("a text").input_ids == tokenizers[1]("a text").input_ids


def test_progressive_gives_all_models_and_says_which_is_drawn(run: Run, files: dict[str, Any], tmp_path: Path) -> None:
    code, out, err = run(*words(files, "progressive", tmp_path / "out", "--blocks", "3"))
    assert code == 0, err
    saved = json.loads((tmp_path / "out" / "promise.json").read_text())
    assert (
        saved["num_examples"] == 3 * share_out(160, 3)[1] and "one of 3 models, drawn at random" in saved["statement"]
    )
    models = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert models == ["model-1", "model-2", "model-3"] and "Drawn at random" in out


def test_all_counts_disagreements_on_inputs_without_labels(run: Run, files: dict[str, Any], tmp_path: Path) -> None:
    code, out, err = run(*words(files, "all", tmp_path / "out", "--unlabeled", files["more"]))
    assert code == 0, err
    assert "the model of all examples" in " ".join(out.split()) and (tmp_path / "out" / "config.json").is_file()


def without(given: list[object], flag: str) -> list[object]:
    at = given.index(flag)
    return given[:at] + given[at + 2 :]


def test_what_does_not_go_together_is_refused(run: Run, files: dict[str, Any], tmp_path: Path) -> None:
    place = tmp_path / "out"
    split = words(files, "split", place)
    refused(run, r"--how split needs --train FILE\.py:FUNCTION", *without(split, "--train"))
    refused(run, r"--how split needs --save-models FOLDER", *without(split, "--save-models"))
    refused(run, r"leave out --max-error, or train before", *split, "--max-error", "0.1")
    refused(run, r"leave out several candidates", *split, "--candidates", "3")
    refused(run, r"--how all needs --unlabeled", *words(files, "all", place))
    refused(run, r"--unlabeled goes with --how all", *split, "--unlabeled", files["more"])
    refused(run, r"--blocks goes with --how progressive, and --how split does not heed it", *split, "--blocks", "3")
    refused(run, r"--cold-start goes with --how progressive", *split, "--cold-start")
    more = words(files, "progressive", place, "--train-fraction", "0.5")
    refused(run, r"--train-fraction goes with --how split or all", *more)
    given = ("promise", files["model"], "--held-out", files["more"], "--blocks", "3")
    refused(run, r"--blocks goes with --how", *given)
    refused(run, r"how must be one of 'split', 'progressive', 'all'", *words(files, "best", place))
    refused(run, r"leave out --training-data", *split, "--training-data", files["more"])
    refused(run, r"--train goes with --how", *without(split, "--how"))
    refused(run, r"too few for 500 blocks", *words(files, "progressive", place, "--blocks", "500"))
    refused(run, r"exists already: give the name of a new folder", *words(files, "split", files["folder"]))
    assert not place.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fit", r"expected FILE\.py:FUNCTION"),
        ("nowhere.py:fit", r"there is no file 'nowhere\.py'"),
        ("{folder}/labeled.csv:fit", r"is no Python file"),
        ("{folder}/my_training.py:NUMBER", r"has no function 'NUMBER'"),
        ("{folder}/my_training.py:missing", r"has no function 'missing'"),
    ],
)
def test_a_function_that_is_not_there(run: Run, files: dict[str, Any], tmp_path: Path, name: str, message: str) -> None:
    given = words(files, "split", tmp_path / "out")
    given[given.index("--train") + 1] = name.format(**files)
    refused(run, message, *given)
