"""What the tests of the command line share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import saved_models
import torch
from command_runs import ROWS, Run, write_csv
from transformers import AutoModelForSequenceClassification

from hf_pacgen.command_line.main import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command; get its exit code, and what it printed and complained of, each on one line."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()  # what setting up printed
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, " ".join(re.sub("[│┃]", " ", out).split()), err

    return call


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for every kind of model."""
    base = tmp_path_factory.mktemp("models")
    names: dict[str, Any] = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    return {
        "classifier": saved_models.bert(base / "classifier"),
        "named": saved_models.bert(base / "named", **names),
        "regression": saved_models.bert(base / "regression", num_labels=1),
        "encoder": saved_models.bert(base / "encoder", head=False),
        "no tokenizer": saved_models.bert(base / "no_tokenizer", with_tokenizer=False),
        "language model": saved_models.gpt2(base / "language_model"),
        "vision": saved_models.vit(base / "vision"),
        "color vision": saved_models.vit(base / "color_vision", channels=3),
    }


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs of one checkpoint each; beside them lie train.csv and test.csv."""
    folder = tmp_path_factory.mktemp("runs")
    for name, rows in (("train", ROWS), ("test", [(text, 1 - label) for text, label in ROWS])):
        write_csv(folder / f"{name}.csv", rows)
    for number in range(3):
        path = saved_models.bert(folder / f"run{number}" / "checkpoint-9")
        model = AutoModelForSequenceClassification.from_pretrained(path)
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * number * torch.randn_like(parameter))
        model.save_pretrained(path)
    return [folder / f"run{number}" / "checkpoint-9" for number in range(3)]
