"""``hf-pacgen`` as a user meets it: what it prints, what it writes, and what it says to bad input."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy
import pytest
import saved_models
import torch
from PIL import Image
from transformers import AutoModelForSequenceClassification, ViTImageProcessorPil

from hf_pacgen import PACGenResult, ScoreConfig, __version__, pacgen
from hf_pacgen.command_line.main import COMMANDS, main

ROWS = [("good movie", 1), ("awful food was bad", 0), ("very fine", 1), ("not good", 0), ("a bad movie", 0)]
QUICK = ["--no-progress", "--lipschitz-directions", "0"]

Run = Callable[..., tuple[int, str, str]]


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


@pytest.fixture(scope="module")
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


def write_csv(path: Path, rows: list[Any] = ROWS, columns: tuple[str, ...] = ("text", "label")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def write_images(path: Path, count: int = 6, mode: str = "L") -> Path:
    shape = (12, 12) if mode == "L" else (12, 12, 3)
    draw = numpy.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 255, shape, dtype=numpy.uint8)) for _ in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    datasets.Dataset.from_dict({"image": pictures, "label": [0, 9, 3] * (count // 3)}, features).to_parquet(path)
    return path


# ------------------------------------------------------------------------------------------- what it does


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

    for phrase in ("Ψ", "K(η)", "active fraction", "Hessian trace", "lower is better", "trainable parameters"):
        assert phrase in out
    assert "text -> label; 5 rows" in out and f"{result.num_parameters:,}" in out
    assert f"Written to {tmp_path / 'result.json'}" in out
    assert all(sentence in out for sentence in result.status)


def test_encoder_gets_a_seeded_head_and_says_so(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    rows = [("good", "pos"), ("bad", "neg"), ("fine", "neutral"), ("awful", "neg")]
    data = write_csv(tmp_path / "train.csv", rows)
    outputs = [tmp_path / f"{seed}.json" for seed in (0, 0, 1)]
    for seed, output in zip((0, 0, 1), outputs, strict=True):
        torch.rand(3)  # the state of the random generator does not matter
        code, out, _ = run(
            "score",
            models["encoder"],
            "--dataset",
            data,
            *QUICK,
            "--seed",
            seed,
            "--output",
            output,
            "--estimator",
            "gauss_newton",
        )
        assert code == 0
    assert "no trained head for sequence-classification: classifier.bias, classifier.weight" in out
    assert "initialized at random (seed 1)" in out and "Fine-tune it" in out
    assert "alphabetical order: neg = 0, neutral = 1, pos = 2" in out
    first, second, third = (PACGenResult.load(output) for output in outputs)
    assert first.by_module["classifier"]["num_parameters"] == 3 * 16 + 3
    assert first.loss == second.loss != third.loss


def test_head_for_other_labels_is_replaced_when_the_task_is_given(
    run: Run, models: dict[str, Path], tmp_path: Path
) -> None:
    folder = saved_models.bert(tmp_path / "model", num_labels=5)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("ForSequenceClassification", "ForTokenClassification"))
    words = ("score", folder, "--dataset", write_csv(tmp_path / "t.csv"), "--task", "sequence-classification", *QUICK)
    code, out, _ = run(*words)
    assert code == 0 and "classifier.bias, classifier.weight were initialized at random" in out


def test_language_model_counts_predicted_tokens(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    texts = ["good movie was", "", "the food", "very very bad movie"]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps({"id": i, "content": text}) + "\n" for i, text in enumerate(texts)))
    code, out, _ = run("score", models["language model"], "--dataset", data, *QUICK, "--output", tmp_path / "r.json")
    assert code == 0
    result = PACGenResult.load(tmp_path / "r.json")
    assert (result.num_examples, result.num_units) == (3, 2 + 1 + 3)
    assert "1 of 4 texts are empty and were left out" in out


def test_images_in_parquet(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = write_images(tmp_path / "train.parquet")
    code, out, _ = run("score", models["vision"], "--dataset", data, *QUICK)
    assert code == 0
    assert "image -> label; 6 rows" in out and "resized to 8 x 8" in out
    assert "only 3 different labels occur" in out


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_go_through_the_models_processor(run: Run, models: dict[str, Path], tmp_path: Path, mode: str) -> None:
    model = saved_models.vit(tmp_path / "model", channels=3)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(model)
    code, out, _ = run("score", model, "--dataset", write_images(tmp_path / "train.parquet", mode=mode), *QUICK)
    assert code == 0 and "resized to" not in out


def test_image_files_named_in_a_table(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (9, 7), color={"a": "red", "b": "blue"}[name]).save(tmp_path / f"{name}.png")
    data = write_csv(tmp_path / "t.csv", [(tmp_path / "a.png", 0), (tmp_path / "b.png", 1)], ("picture", "class"))
    assert run("score", models["color vision"], "--dataset", data, *QUICK)[0] == 0


def test_text_pairs_and_given_columns(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    rows = [("good movie", "a fine movie", "x", 1), ("bad", "good", "y", 0)]
    data = write_csv(tmp_path / "pairs.csv", rows, ("premise", "hypothesis", "text", "gold"))
    code, out, _ = run("score", models["classifier"], "--dataset", data, *QUICK)
    assert code == 0 and "(premise, hypothesis -> gold; 2 rows)" in out
    code, out, _ = run("score", models["classifier"], "--dataset", data, *QUICK, "--text-column", "hypothesis")
    assert code == 0 and "(hypothesis -> gold; 2 rows)" in out


def test_names_of_labels_follow_the_models_numbering(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    by_name = [(text, "Positive" if label else "negative") for text, label in ROWS]
    results: list[PACGenResult] = []
    for rows in (ROWS, by_name):
        output = tmp_path / "r.json"
        data = write_csv(tmp_path / f"{len(results)}.csv", rows)
        assert run("score", models["named"], "--dataset", data, *QUICK, "--output", output)[0] == 0
        results.append(PACGenResult.load(output))
    assert results[0].loss == results[1].loss


def test_regression(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv", [(text, label - 0.25) for text, label in ROWS])
    code, out, _ = run("score", models["regression"], "--dataset", data, *QUICK)
    assert code == 0 and "hutchinson estimate" in out


def test_several_files_subset_and_eta(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    files = [write_csv(tmp_path / f"{part}.csv") for part in "ab"]
    output = tmp_path / "r.json"
    common = ("score", models["classifier"], "--dataset", *files, "--max_examples", 4, *QUICK, "--output", output)
    assert run(*common)[0] == 0
    result = PACGenResult.load(output)
    assert (result.num_examples, result.eta) == (4, 10)  # η = n is that of all the training data
    assert run(*common, "--eta", "2.5", "--dtype", "float64")[0] == 0
    assert PACGenResult.load(output).eta == 2.5


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


def test_result_that_cannot_be_written_is_printed(
    run: Run, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(result: PACGenResult, path: str) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(PACGenResult, "save", fail)
    words = ("score", models["classifier"], "--dataset", write_csv(tmp_path / "t.csv"), *QUICK)
    code, out, err = run(*words, "--output", tmp_path / "r.json")
    assert code == 2 and "K(η)" in out and "could not be written: the disk is full" in err


def test_help_is_written_once_in_the_settings(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["score", "--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for setting in ScoreConfig.__dataclass_fields__.values():
        assert f"--{setting.name.replace('_', '-')}" in text
        assert " ".join(setting.metadata["help"].split()[:4]) in text
    assert "_args" not in text and "(default: None)" not in text and "Estimator." not in text


def test_version_and_list_of_commands(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out.strip() == __version__
    code, _, err = run()
    assert code == 2 and all(command in err for command in COMMANDS)


def test_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupt)
    assert run("score")[0] == 130


# --------------------------------------------------------------------------------------------- bad input


def refused(run: Run, message: str, *words: object) -> None:
    """The command leaves with code 2 and says one line that matches."""
    code, out, err = run(*words)
    assert code == 2 and not out
    assert err.startswith("hf-pacgen: error: ") and err.count("\n") == 1
    assert re.search(message, err), err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "no command 'frobnicate'; expected one of score"),
        (["score"], "required: --dataset, MODEL. Usage: hf-pacgen score MODEL --dataset"),
        (["score", "m"], "required: --dataset"),
        (["score", "m", "--dataset", "d", "--gama", "1"], "Unknown arguments --gama 1. Usage"),
        (["score", "m", "--dataset", "d", "--gamma", "-1"], r"gamma must be a finite number of at least 0; got -1\.0"),
        (["score", "m", "--dataset", "d", "--gamma", "0", "--epsilon", "0"], "gamma and epsilon are both 0"),
        (["score", "m", "--dataset", "d", "--gamma", "x"], "--gamma: invalid float value: 'x'"),
        (["score", "m", "--dataset", "d", "--eta", "all"], "eta must be a positive number, or 'n'.*got 'all'"),
        (["score", "m", "--dataset", "d", "--estimator", "guess"], "invalid choice: 'guess'.*blend"),
        (
            ["score", "m", "--dataset", "d", "--batch-size", "0"],
            ": --batch-size must be an integer of at least 1; got 0",
        ),
        (["score", "m", "--dataset", "d", "--top-modules", "-1"], ": --top-modules must be an integer of at least 0"),
        (
            ["score", "m", "--dataset", "d", "--max-length", "0"],
            ": --max-length must be an integer of at least 1; got 0",
        ),
        (["score", "m", "--dataset", "d", "--device", "abacus"], "--device 'abacus' cannot be used"),
        (["score", "m", "--dataset", "d.csv"], "data set file 'd.csv' does not exist. Looked in"),
        (["score", "m", "--dataset", "a", "b"], "data set file 'a' does not exist"),
        (["score", "./m", "--dataset", "d"], "model folder './m' does not exist. Expected a folder written by"),
        (
            ["score", "no/such-model", "--dataset", "d"],
            "model 'no/such-model' is no folder here, and could not be loaded",
        ),
    ],
)
def test_bad_words(run: Run, words: list[str], message: str) -> None:
    refused(run, message, *words)


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--text-column", "body"],
            r"no column 'body'; it has 'text' \(text\), 'label' \(int64\). Correct --text-column",
        ),
        (["--text-column", "label"], "column 'label' holds int64, expected text. Correct --text-column"),
        (["--text-pair-column", "other"], "no column 'other'.*Correct --text-pair-column"),
        (["--label-column", "gold"], "no column 'gold'.*Correct --label-column"),
        (["--task", "image-classification"], "--task image-classification does not fit a model of type 'bert'"),
        (["--split", "validation"], "--split 'validation' is not a split of the files given"),
        (["--max-length", "100"], "--max-length 100 is more than the 32 tokens"),
        (
            ["--output", "no/such/folder/r.json"],
            "--output 'no/such/folder/r.json': the folder 'no/such/folder' does not exist",
        ),
        (["--output", "."], "--output '.' is a folder: expected the name of a JSON file"),
        (
            ["--rho", "1", "--lipschitz-directions", "1"],
            "rho=1.0 was given together with --lipschitz-directions 1; set --lipschitz-directions 0 to use your rho",
        ),
    ],
)
def test_bad_flags(run: Run, models: dict[str, Path], tmp_path: Path, flags: list[str], message: str) -> None:
    data = write_csv(tmp_path / "train.csv")
    refused(run, message, "score", models["classifier"], "--dataset", data, *QUICK, *flags)


def test_bad_models(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv")

    def model(name: str, **files: str) -> Path:
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file.replace("__", ".")).write_text(content)
        return tmp_path / name

    config = (models["classifier"] / "config.json").read_text()
    cases = {
        model(
            "bare", notes__txt=""
        ): r"has no config.json: expected a model written by save_pretrained.*holds notes.txt",
        model("adapter", adapter_config__json="{}"): "holds a PEFT adapter without its base model",
        model("garbled", config__json="{"): "model in the folder '.*garbled' cannot be loaded",
        model("weightless", config__json=config): "No tokenizer can be loaded from '.*weightless'",
        data: "model folder '.*train.csv' is a file",
        models["no tokenizer"]: "No tokenizer can be loaded from '.*no_tokenizer': its vocabulary is empty",
        models["vision"]: "which column holds the image.*--image-column",
    }
    for folder, message in cases.items():
        refused(run, message, "score", folder, "--dataset", data, *QUICK)


def test_code_of_a_model_is_not_run_unasked(run: Run, tmp_path: Path) -> None:
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('this was run')")
    data = write_csv(tmp_path / "t.csv")
    refused(run, "comes with its own code.*add --trust-remote-code", "score", tmp_path, "--dataset", data)


def test_weights_that_are_missing_or_of_other_shapes(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv")
    folder = saved_models.bert(tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    refused(run, "model.* cannot be loaded: .*no file named model.safetensors", "score", folder, "--dataset", data)
    (folder / "model.safetensors").write_text("garbage")
    refused(
        run, "model in the folder .* cannot be loaded: Error while deserializing", "score", folder, "--dataset", data
    )
    (folder / "model.safetensors").write_bytes(weights)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 24}))
    refused(run, r"do not fit its config.json: '.*' has shape \(.*16", "score", folder, "--dataset", data)


def test_task_that_cannot_be_told(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv", [("good",), ("bad",)], ("text",))
    refused(run, r"Cannot tell the task.*\(BertModel\).*--task", "score", models["encoder"], "--dataset", data)
    config = json.loads((models["classifier"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["BertForTokenClassification"]}))
    refused(run, r"\(BertForTokenClassification\): expected", "score", tmp_path, "--dataset", write_csv(data))


def test_labels_that_do_not_fit_the_model(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv", [("good", "happy"), ("bad", "negative")])
    refused(
        run,
        "label 'happy' .*none of the model's: .*'negative', 'positive'",
        "score",
        models["named"],
        "--dataset",
        data,
    )
    refused(run, "1 output, which is for regression", "score", models["regression"], "--dataset", data)
    one = write_csv(tmp_path / "one.csv", [("good", 1), ("fine", 1)])
    refused(run, "one single label, 1: expected at least 2", "score", models["encoder"], "--dataset", one)


def test_all_texts_empty(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "t.json"
    data.write_text('[{"text": ""}, {"text": " "}]')
    refused(run, "All texts in the column 'text' are empty", "score", models["language model"], "--dataset", data)


def test_images_that_cannot_be_read(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    for name, message in (("a.png", "rows 0 to 0 is one that cannot be read: cannot identify"), ("b.png", "b.png")):
        data = write_csv(tmp_path / f"{name}.csv", [(tmp_path / name, 0)], ("image", "label"))
        refused(run, message, "score", models["vision"], "--dataset", data, *QUICK)


def test_image_processor_for_other_channels(run: Run, tmp_path: Path) -> None:
    model = saved_models.vit(tmp_path / "model", channels=1)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(model)  # means of three channels
    data = write_images(tmp_path / "train.parquet")
    # torchvision's processors make three channels of one
    refusal = "image processor (refuses images of 1 channels|makes images of 3 channels).*preprocessor_config"
    refused(run, refusal, "score", model, "--dataset", data)
    size = {"height": 8, "width": 8}
    ViTImageProcessorPil(size=size, do_convert_rgb=True).save_pretrained(model)
    refused(run, "makes images of 3 channels, and the model takes 1. Repair", "score", model, "--dataset", data)


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


def test_what_pacgen_refuses_is_one_line_too(run: Run, tmp_path: Path) -> None:
    folder = saved_models.bert(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.classifier.weight.data[0, 0] = float("nan")
    model.save_pretrained(folder)
    refused(run, "weights 'classifier.weight' contain NaN", "score", folder, "--dataset", write_csv(tmp_path / "t.csv"))


@pytest.mark.parametrize("command", ["score", "certify", "sharpness", "compare"])
def test_too_little_memory(
    run: Run, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def fail(*arguments: Any, **settings: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    measure = {"score": "pacgen", "certify": "certify", "sharpness": "expected_sharpness", "compare": "measure_all"}
    monkeypatch.setattr(f"hf_pacgen.command_line.{command}.{measure[command]}", fail)
    words = (command, models["classifier"], "--dataset", write_csv(tmp_path / "t.csv"), "--no-progress")
    prior = ("--prior", "zero") if command == "certify" else ()
    refused(run, "device is out of memory: take a smaller --batch-size or --max-length", *words, *prior)


def test_results_that_find_no_room(
    run: Run, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # the superuser may write into any folder
    words = (models["classifier"], "--dataset", write_csv(tmp_path / "t.csv"), "--no-progress")
    output = tmp_path / "r.json"
    message = f"--output '{output}': the folder '{tmp_path}' cannot be written to. Choose another"
    refused(run, message, "score", *words, "--output", output)
    monkeypatch.undo()

    def full(*arguments: Any, **settings: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    few = ("--noise-scale", 0, "--eigenvalues", 0)
    refused(run, "r.json' could not be written: .*No space left", "sharpness", *words, *few, "--output", output)
    monkeypatch.setattr("hf_pacgen.certify.certify.Certificate.save", full)
    code, out, err = run("certify", *words, "--prior", "zero", "--draws", 2, "--output", output)
    assert code == 2 and "The certificate is vacuous" in out  # the work is not lost
    assert re.search("r.json' could not be written: .*No space left", err) and err.count("\n") == 1


def test_a_table_without_rows(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "train.parquet"
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"text": [], "label": []}, features).to_parquet(data)
    message = "'.*train.parquet' has no rows: there is nothing to score"
    refused(run, message, "score", models["classifier"], "--dataset", data)


def test_broken_processors(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    text = saved_models.bert(tmp_path / "text")
    (text / "tokenizer.json").write_text("{")
    refused(run, "No tokenizer can be loaded from", "score", text, "--dataset", write_csv(tmp_path / "t.csv"), *QUICK)
    vision = saved_models.vit(tmp_path / "vision")
    data = write_images(tmp_path / "train.parquet")
    for content in ("{", '{"image_processor_type": "NoSuchProcessor"}'):
        (vision / "preprocessor_config.json").write_text(content)
        message = "image processor of '.*vision' cannot be loaded: .*or remove its preprocessor_config.json"
        refused(run, message, "score", vision, "--dataset", data, *QUICK)


# --------------------------------------------------------------------------------------- as a process


def test_as_a_program(models: dict[str, Path], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "hf_pacgen", "score", str(models["classifier"]), "--dataset"]
    done = subprocess.run([*words, "missing.parquet"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("hf-pacgen: error: The data set file 'missing.parquet' does not exist.*\n", done.stderr)


def test_two_processes_print_once_and_agree_with_one(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data, one, two = write_csv(tmp_path / "train.csv"), tmp_path / "1.json", tmp_path / "2.json"
    words = ["score", models["classifier"], "--dataset", data, *QUICK, "--batch-size", 2, "--device", "cpu"]
    assert run(*words, "--output", one)[0] == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "hf_pacgen", *map(str, words), "--output", str(two)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to") == 1
    assert PACGenResult.load(two).kl_complexity == pytest.approx(PACGenResult.load(one).kl_complexity, rel=1e-4)
