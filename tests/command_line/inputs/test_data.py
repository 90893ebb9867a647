"""Data sets by name, and what is said of those that cannot be used."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import lzma
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pytest
import task_models
from command_runs import QUICK, ROWS, Run, refused, write_csv

from hf_pacgen.errors import InputError


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
        ("notes.doc", "text", "format of the data set file '.*notes.doc'.*one that ends in .arrow, .csv, .json"),
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


ENDINGS = ["csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "jsonl.xz", "csv.bz2", "jsonl.zst", "csv.zip", "shards"]
ENDINGS += ["arrow"]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("streaming", [False, True])
def test_every_form_of_file(ending: str, streaming: bool, models: dict[str, Path], tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([{"text": text, "label": label} for text, label in ROWS])
    plain, _, compression = ending.partition(".")
    file = tmp_path / f"train.{plain}"
    if plain == "shards":
        for i in range(2):
            (tmp_path / "shards").mkdir(exist_ok=True)
            table.shard(2, i).to_parquet(tmp_path / "shards" / f"part-{i:05d}-of-00002.parquet")
        file = tmp_path / "shards"
    elif plain in ("csv", "tsv"):
        table.to_csv(file, sep={"csv": ",", "tsv": "\t"}[plain], index=False)
    elif plain == "parquet":
        table.to_parquet(file)
    elif plain == "arrow":
        table.save_to_disk(str(tmp_path / "saved"))
        file = (tmp_path / "saved" / "data-00000-of-00001.arrow").rename(file)
    else:
        table.to_json(file)
    if compression:
        if compression == "zst":
            pytest.importorskip("zstandard")
        file = compressed(file, compression)
    found = task_models.subject(models["classifier"], file, streaming=streaming)
    assert len(list(found.examples)) == 5 and "text -> label" in found.title
    assert sorted(one["labels"] for one in found.examples) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("split", "labels"),
    [("train[:2]", [1, 0]), ("train[-1:]", [0]), ("train[20%:60%]", [0, 1]), ("train[:1]+train[4:]", [1, 0])],
)
@pytest.mark.parametrize("kind", ["table", "splits"])
def test_parts_of_what_is_saved_on_disk(
    kind: str, split: str, labels: list[int], models: dict[str, Path], tmp_path: Path
) -> None:
    table = datasets.Dataset.from_list([{"text": text, "label": label} for text, label in ROWS])
    saved: Any = table if kind == "table" else datasets.DatasetDict({"train": table, "test": table.select([0])})
    saved.save_to_disk(str(tmp_path / "saved"))
    found = task_models.subject(models["classifier"], tmp_path / "saved", split=split)
    assert [one["labels"] for one in found.examples] == labels


def test_parts_that_are_not_there(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"text": "good", "label": 1}]).save_to_disk(str(tmp_path / "saved"))
    words = ("score", models["classifier"], "--dataset", tmp_path / "saved", "--split")
    refused(run, "has no split 'test'; it has train", *words, "test[:2]")
    refused(run, r"--split 'train\[x\]' cannot be read: .* Write a split, such as train, or a part", *words, "train[x]")
    write_csv(tmp_path / "a.csv")
    file = ("score", models["classifier"], "--dataset", tmp_path / "a.csv")
    refused(run, r"--split 'train\[x\]' is not a split of the files given", *file, "--split", "train[x]")
    refused(run, "--sample-by document is for txt files", *file, "--sample-by", "document")


def test_files_that_would_be_read_otherwise_in_silence(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    words = ("score", models["language model"], "--dataset")
    (tmp_path / "a.csv").write_text("text;label\ngood movie;1\n")
    refused(run, r"a.csv' has columns set apart by ';' \('text;label'\): expected commas", *words, tmp_path / "a.csv")
    (tmp_path / "both").mkdir()
    write_csv(tmp_path / "both" / "a.csv")
    datasets.Dataset.from_list([{"text": "good"}]).to_parquet(tmp_path / "both" / "b.parquet")
    refused(run, r"data of different formats \(a.csv, b.parquet\): expected one", *words, tmp_path / "both")


def test_zstd_without_its_library(run: Run, models: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "zstandard" else find(name))
    (tmp_path / "a.jsonl.zst").write_bytes(b"(")
    words = ("score", models["classifier"], "--dataset", tmp_path / "a.jsonl.zst")
    refused(run, "is compressed by zstd, which needs zstandard: pip install zstandard, or unpack it", *words)


def compressed(file: Path, kind: str) -> Path:
    content, made = file.read_bytes(), file.with_name(f"{file.name}.{kind}")
    if kind == "zip":
        with zipfile.ZipFile(made, "w") as archive:
            archive.writestr(file.name, content)
    elif kind == "zst":
        import zstandard

        made.write_bytes(zstandard.compress(content))
    else:
        made.write_bytes({"gz": gzip, "xz": lzma, "bz2": bz2}[kind].compress(content))
    file.unlink()
    return made


def test_texts_by_lines_paragraphs_and_documents(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good movie\nbad food\n\nthe movie was\n")
    for sample_by, count in (("line", 3), ("paragraph", 2), ("document", 1)):
        for data in (tmp_path / "a.txt", tmp_path):
            found = task_models.subject(models["language model"], data, sample_by=sample_by)
            assert len(found.examples) == count
    assert "1 of 4 texts are empty" in " ".join(task_models.subject(models["language model"], tmp_path).notes)


def test_streams(models: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"text": "good", "label": i % 2} for i in range(1002)]
    data = task_models.write_rows(tmp_path / "d.jsonl", [*rows, {"text": "bad", "label": 7}])
    found = task_models.subject(models["classifier"], data, streaming=True)
    assert "(text -> label; streamed)" in found.title
    with pytest.raises(InputError, match="label 7 in the column 'label' is none of those in the training data, or"):
        list(found.examples)
    task_models.write_rows(data, [*rows, {"text": None, "label": 1}])
    with pytest.raises(InputError, match=r"'text' has no value in row 1002 \(counted from 0\)"):
        list(task_models.subject(models["classifier"], data, streaming=True).examples)
    with pytest.raises(InputError, match=r"--split 'train.:2.' is a part of a split, and a stream is read from its"):
        task_models.subject(models["classifier"], data, streaming=True, split="train[:2]")
    task_models.write_rows(data, [{"text": " "}, {"text": ""}])
    with pytest.raises(InputError, match="All texts in the column 'text' are empty"):
        task_models.subject(models["language model"], data, streaming=True)
    task_models.write_rows(data, [{"text": " "}, {"text": "good movie"}])
    assert len(list(task_models.subject(models["language model"], data, streaming=True).examples)) == 1


def test_splits_of_a_stream(run: Run, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([{"text": text, "label": label} for text, label in ROWS]).to_iterable_dataset()

    def load(name: str, config: str | None, split: str | None, streaming: bool) -> Any:
        return datasets.IterableDatasetDict({"train": table, "test": table.take(1)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    words = ["score", models["classifier"], "--dataset", "user/tweets", "--streaming", *QUICK]
    code, out, _ = run(*words)
    assert code == 0 and "(text -> label; streamed)" in out
    refused(run, "has no split 'dev'; it has train, test", *words, "--split", "dev")
