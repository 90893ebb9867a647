"""Data sets by name, and what is said of those that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from command_runs import QUICK, ROWS, Run, refused, write_csv


def test_folders_of_data(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([{"text": text, "label": label} for text, label in ROWS])
    (tmp_path / "files").mkdir()
    table.to_parquet(tmp_path / "files" / "train.parquet")
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"validation": table}).save_to_disk(str(tmp_path / "splits"))
    for folder in ("files", "saved", "splits"):
        assert run("score", models["classifier"], "--dataset", tmp_path / folder, *QUICK)[0] == 0


def test_data_from_the_hub(
    run: Run, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def load(name: str, config: str | None, split: str | None) -> Any:
        asked.append((name, config, split))
        table = datasets.Dataset.from_list([{"sentence": text, "label": label} for text, label in ROWS])
        return table if split else datasets.DatasetDict({"test": table.select([0]), "train": table})

    monkeypatch.setattr(datasets, "load_dataset", load)
    words = ["score", models["classifier"], "--dataset", "user/tweets", *QUICK]
    assert "(sentence -> label; 5 rows)" in run(*words)[1]
    assert run(*words, "--dataset-config", "sst2", "--split", "validation")[0] == 0
    assert asked == [("user/tweets", None, None), ("user/tweets", "sst2", "validation")]
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **more: load(*names, **more)["train"].select([]))
    refused(run, "data set 'user/tweets' has no rows: there is nothing to score. Give the training data", *words)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", "", "file '.*empty.csv' is empty: expected rows with named columns"),
        ("header.csv", "text,label\n", "'.*header.csv' has no rows"),
        (
            "ragged.csv",
            "text,label\na,1\nb,2,3\nc,4\n",
            "ragged.csv' could not be read as csv: .*Expected 2 fields in line 3",
        ),
        ("broken.json", '{"text": "a", "label": 1}\n{"text": "b", ', "broken.json' could not be read as json"),
        ("broken.parquet", "PAR0", "broken.parquet' could not be read as parquet"),
        ("notes.doc", "text", "format of the data set file '.*notes.doc'.*one that ends in .csv, .json"),
        ("other.csv", "words,label\na,1\n", "ok"),
        (
            "numbers.csv",
            "x,label\n1,1\n",
            r"which column holds the text: the data has 'x' \(int64\), 'label' \(int64\)",
        ),
        ("unlabeled.csv", "text\na\n", r"which column holds the label: the data has 'text' \(text\)"),
        ("gap.csv", "text,label\na,1\nb,\n", "'label' has no value in 1 of 2 rows .the first is row 1"),
        ("silent.csv", "text,label\na,1\n,0\nb,0\n", "'text' has no value in 1 of 3 rows .the first is row 1"),
        (
            "many.csv",
            "text,label\na,0\nb,1\nc,7\n",
            "holds 3 classes .numbered up to 7., but the model's head has 2 outputs",
        ),
        (
            "high.csv",
            "text,label\na,0\nb,5\n",
            "holds the label 5 .numbered up to 5., but the model's head has 2 outputs",
        ),
        ("hidden.csv", "text,label\na,-1\n", "holds the label -1: expected class numbers from 0. Hidden labels"),
        ("real.csv", "text,label\na,0.5\n", "holds 0.5: expected class numbers or names. For regression"),
        ("names.csv", "text,label\na,x\nb,y\nc,z\n", "holds 3 classes .numbered up to 2., but the model's head has 2"),
    ],
)
def test_bad_data(run: Run, models: dict[str, Path], tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    words = ("score", models["classifier"], "--dataset", tmp_path / name, *QUICK)
    if message == "ok":
        assert run(*words)[0] == 0
    else:
        refused(run, message, *words)


def test_files_of_two_formats(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "a.csv")
    (tmp_path / "b.json").write_text("[]")
    words = ("score", models["classifier"], "--dataset", data)
    refused(run, "of different formats", *words, tmp_path / "b.json")
    refused(run, "is a folder; give its files one by one", *words, tmp_path)


def test_folders_that_are_no_data(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    refused(
        run, "'.*void' could not be read as a data set", "score", models["classifier"], "--dataset", tmp_path / "void"
    )
    table = datasets.Dataset.from_list([{"text": "good", "label": 1}])
    datasets.DatasetDict({"dev": table, "test": table}).save_to_disk(str(tmp_path / "splits"))
    words = ("score", models["classifier"], "--dataset", tmp_path / "splits")
    refused(run, "has no split 'train'; it has dev, test. .*--split", *words)
    refused(run, "could not be loaded from the Hugging Face hub", *words[:3], "no/such-data")


def test_a_table_without_rows(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "train.parquet"
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"text": [], "label": []}, features).to_parquet(data)
    message = "'.*train.parquet' has no rows: there is nothing to score"
    refused(run, message, "score", models["classifier"], "--dataset", data)
