"""A model and its data together: a head for the labels, the columns, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import saved_models
import torch
from command_runs import QUICK, Run, refused, write_csv

from hf_pacgen import PACGenResult


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
            "--random-head",
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
    refused(run, "trained for token-classification and has no head for sequence-classification: a head made", *words)
    code, out, _ = run(*words, "--random-head")
    assert code == 0 and "classifier.bias, classifier.weight were initialized at random" in out


def test_text_pairs_and_given_columns(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    rows = [("good movie", "a fine movie", "x", 1), ("bad", "good", "y", 0)]
    data = write_csv(tmp_path / "pairs.csv", rows, ("premise", "hypothesis", "text", "gold"))
    code, out, _ = run("score", models["classifier"], "--dataset", data, *QUICK)
    assert code == 0 and "(premise, hypothesis -> gold; 2 rows)" in out
    code, out, _ = run("score", models["classifier"], "--dataset", data, *QUICK, "--text-column", "hypothesis")
    assert code == 0 and "(hypothesis -> gold; 2 rows)" in out


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
            ["--output", "/dev/null/r.json"],
            "--output '/dev/null/r.json': the folder '/dev/null' cannot be made",
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


def test_task_that_cannot_be_told(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv", [("good",), ("bad",)], ("text",))
    words = ("score", models["encoder"], "--dataset", data)
    refused(run, r"\(BertModel\) is a base model: give it a trained head.*add --random-head", *words)
    refused(run, r"Cannot tell the task.*\(BertModel\).*--task", *words, "--random-head")
    config = json.loads((models["classifier"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["BertForNextSentencePrediction"]}))
    refused(
        run,
        r"\(BertForNextSentencePrediction\) is trained for next-sentence",
        "score",
        tmp_path,
        "--dataset",
        write_csv(data),
    )


def test_a_base_model_is_never_scored_with_a_random_head_unasked(
    run: Run, models: dict[str, Path], tmp_path: Path
) -> None:
    words = ("score", models["encoder"], "--dataset", write_csv(tmp_path / "t.csv"), "--task")
    refused(
        run,
        r"is a base model: give it a trained head for sequence-classification. Fine-tune it.*--random-head",
        *words,
        "sequence-classification",
    )
    folder = saved_models.bert(tmp_path / "no architecture")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": None}))
    refused(run, "lacks cls.predictions.*made at random", *words[:1], folder, *words[2:], "causal-lm")
    assert run(*words[:1], folder, *words[2:], "sequence-classification", *QUICK)[0] == 0  # it has that head
