"""Labels as the head of the model numbers them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import task_models
from command_runs import QUICK, ROWS, Run, refused, write_csv

from hf_pacgen import PACGenResult
from hf_pacgen.errors import InputError


def test_names_of_labels_follow_the_models_numbering(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    by_name = [(text, "Positive" if label else "negative") for text, label in ROWS]
    results: list[PACGenResult] = []
    for rows in (ROWS, by_name):
        output = tmp_path / "r.json"
        data = write_csv(tmp_path / f"{len(results)}.csv", rows)
        assert run("score", models["named"], "--dataset", data, *QUICK, "--output", output)[0] == 0
        results.append(PACGenResult.load(output))
    assert results[0].loss == results[1].loss


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
    refused(
        run, "one single label, 1: expected at least 2", "score", models["encoder"], "--random-head", "--dataset", one
    )


def several(tmp_path: Path, problem: str | None, rows: list[dict[str, Any]], outputs: int = 3) -> Any:
    folder = task_models.bert(tmp_path / "model", "SequenceClassification", problem_type=problem, num_labels=outputs)
    return task_models.subject(folder, rows)


@pytest.mark.parametrize(
    ("problem", "rows", "outputs", "message"),
    [
        (
            "single_label_classification",
            [{"text": "a", "labels": [1]}],
            3,
            "holds lists of labels, and the model is",
        ),
        (
            None,
            [{"text": "a", "labels": [1]}],
            1,
            r"lists of labels, and the model is trained for a single one \(1",
        ),
        (
            "multi_label_classification",
            [{"text": "a", "label": 1}],
            3,
            "trained for several labels at once",
        ),
        ("regression", [{"text": "a", "label": 1.5}], 2, "for the regression of 2 numbers, and the column 'label'"),
        ("multi_label_classification", [{"text": "a", "labels": ["x"]}] * 2, 0, ""),
        ("multi_label_classification", [{"text": "a", "labels": [5]}], 3, "holds the label 5"),
        ("multi_label_classification", [{"text": "a", "labels": [[]]}], 3, "which column holds the label"),
    ],
)
def test_several_labels_that_do_not_fit(
    problem: str, rows: list[dict[str, Any]], outputs: int, message: str, tmp_path: Path
) -> None:
    if not outputs:  # a single name for a model that does not name its classes
        notes = " ".join(several(tmp_path, problem, rows).notes)
        assert "does not name its classes" in notes and "x = 0" in notes
        return
    with pytest.raises(InputError, match=message):
        several(tmp_path, problem, rows, outputs)


def test_rows_of_too_few_numbers(tmp_path: Path) -> None:
    rows = [{"text": "a", "labels": [1.0, 0.5]}, {"text": "b", "labels": [1.0]}]
    found = several(tmp_path, "regression", rows, 2)
    with pytest.raises(InputError, match="'labels' has a row of 1 numbers: expected one for each of the model's 2"):
        found.examples[1]


def test_no_label_in_any_row(tmp_path: Path) -> None:
    folder = task_models.bert(tmp_path / "tags", "TokenClassification", num_labels=2)
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.Value("string"))}
    )
    table = datasets.Dataset.from_list([{"tokens": [], "ner_tags": []}], features=features)
    table.to_parquet(tmp_path / "tags.parquet")
    with pytest.raises(InputError, match="has no tag in any row"):
        task_models.subject(folder, tmp_path / "tags.parquet")
    model = task_models.bert(
        tmp_path / "several", "SequenceClassification", num_labels=2, problem_type="multi_label_classification"
    )
    features = datasets.Features({"text": datasets.Value("string"), "labels": datasets.List(datasets.Value("string"))})
    table = datasets.Dataset.from_list([{"text": "good", "labels": []}], features=features)
    table.to_parquet(tmp_path / "several.parquet")
    with pytest.raises(InputError, match="'labels' has no label in any row"):
        task_models.subject(model, tmp_path / "several.parquet")


def test_classes_of_other_names_are_told(tmp_path: Path) -> None:
    names: dict[str, Any] = {"id2label": {0: "dog", 1: "cat"}, "label2id": {"dog": 0, "cat": 1}}
    folder = task_models.bert(tmp_path / "model", "SequenceClassification", **names)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"text": ["good", "bad"], "label": [0, 1]}, features)
    table.to_parquet(tmp_path / "d.parquet")
    notes = " ".join(task_models.subject(folder, tmp_path / "d.parquet").notes)
    assert "'label' (a, b) are not named as the model's (dog, cat): they are taken by their numbers" in notes


def test_names_that_differ_by_case_alone(tmp_path: Path) -> None:
    names: dict[str, Any] = {"id2label": {0: "A", 1: "a"}, "label2id": {"A": 0, "a": 1}}
    folder = task_models.bert(tmp_path / "model", "SequenceClassification", **names)
    found = task_models.subject(folder, [{"text": "good", "label": "A"}, {"text": "bad", "label": "a"}])
    assert [one["labels"] for one in found.examples] == [0, 1]
