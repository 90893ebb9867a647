"""One command for every task: from a folder as ``Trainer.save_model`` leaves it and a file of raw data to a score."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import task_data as rows_of
import task_models as m
import task_page
from command_runs import QUICK, Run

from hf_pacgen import PACGenResult, pacgen
from hf_pacgen.command_line.inputs.tasks import Task

TWO: dict[str, Any] = {"num_labels": 2}
SOUND = {"array": (0.1 * numpy.sin(numpy.arange(480))).tolist(), "sampling_rate": 16_000}
CASES: dict[str, tuple[Callable[[Path], Path], Any]] = {
    "sequence-classification": (
        lambda path: m.bert(path, "SequenceClassification", **TWO),
        [{"text": "good movie", "label": 1}, {"text": "bad", "label": 0}],
    ),
    "token-classification": (lambda path: m.bert(path, "TokenClassification", **rows_of.TAGS), rows_of.WORDS),
    "question-answering": (lambda path: m.bert(path, "QuestionAnswering"), rows_of.SQUAD),
    "seq2seq": (m.bart, [{"document": "the good movie", "summary": "good"}, {"document": "bad", "summary": "bad"}]),
    "causal-lm": (
        m.llama,
        [{"prompt": "the sky is", "completion": " blue"}, {"prompt": "the", "completion": " movie"}],
    ),
    "masked-lm": (lambda path: m.bert(path, "MaskedLM"), [{"text": "good movie " * 20}, {"text": "bad sky " * 20}]),
    "multiple-choice": (lambda path: m.bert(path, "MultipleChoice"), rows_of.SWAG),
    "image-classification": (
        lambda path: m.vit(path, num_labels=3),
        lambda path: labeled(rows_of.write_pictures(path, masks=rows_of.MASKS)),
    ),
    "image-segmentation": (
        lambda path: m.segformer(path, num_labels=3),
        lambda path: rows_of.write_pictures(path, masks=rows_of.MASKS),
    ),
    "object-detection": (
        lambda path: m.yolos(path, **TWO),
        lambda path: rows_of.write_pictures(path, objects=rows_of.OBJECTS),
    ),
    "audio-classification": (
        lambda path: m.listener(path, **TWO),
        [{"audio": SOUND, "label": 1}, {"audio": SOUND, "label": 0}],
    ),
    "ctc": (m.writer, [{"audio": SOUND, "text": "abc"}, {"audio": SOUND, "text": "de"}]),
}


def labeled(path: Path) -> Path:
    import datasets

    table = datasets.load_dataset("parquet", data_files=str(path), split="train").remove_columns("annotation")
    table.add_column("label", [0, 1, 2]).to_parquet(path)
    return path


def test_there_is_a_case_for_every_task() -> None:
    assert list(CASES) == [task.value for task in Task]


@pytest.mark.parametrize("task", CASES)
def test_one_command(task: str, run: Run, tmp_path: Path) -> None:
    make, rows = CASES[task]
    folder = make(tmp_path / "model")
    data = m.write_rows(tmp_path / "d.jsonl", rows) if isinstance(rows, list) else rows(tmp_path / "d.parquet")
    output = tmp_path / "r.json"
    code, out, err = run("score", folder, "--dataset", data, *QUICK, "--top-modules", 0, "--output", output)
    assert code == 0, err
    result = PACGenResult.load(output)
    assert numpy.isfinite([result.loss, result.score, result.kl_complexity]).all() and result.loss > 0
    assert result.num_examples == m.subject(folder, data).examples.__len__()
    assert " -> " in out  # what was taken as input and as label


PROMISED = {
    "seq2seq": "writes text",
    "causal-lm": "writes text",
    "image-segmentation": "no errors that can be counted",
    "object-detection": "no errors that can be counted",
    "ctc": "no errors that can be counted",
}
"""Why nothing is promised of some tasks without a loss."""


@pytest.mark.parametrize("task", CASES)
def test_a_promise_or_a_sentence(task: str, run: Run, tmp_path: Path) -> None:
    make, rows = CASES[task]
    data = m.write_rows(tmp_path / "d.jsonl", rows) if isinstance(rows, list) else rows(tmp_path / "d.parquet")
    words = ["--held-out", data, "--no-progress", "--assume-independent"]
    code, out, err = run("promise", make(tmp_path / "model"), *words)
    if task in PROMISED:
        assert code == 2 and PROMISED[task] in err
    else:
        assert code == 0 and "With probability ≥ 95 % over the draw of the" in out, err


@pytest.mark.parametrize("task", [task for task in CASES if task not in ("causal-lm",)])
def test_a_trained_model_is_not_scored_for_another_task(task: str, run: Run, tmp_path: Path) -> None:
    if task in ("seq2seq", "audio-classification", "ctc", "object-detection", "image-segmentation"):
        return  # types of models that do one task of these
    other = "masked-lm" if task == "token-classification" else "token-classification"
    other = other if task != "image-classification" else "object-detection"
    make, rows = CASES[task]
    data = m.write_rows(tmp_path / "d.jsonl", rows) if isinstance(rows, list) else rows(tmp_path / "d.parquet")
    code, _, err = run("score", make(tmp_path / "model"), "--dataset", data, "--task", other, *QUICK)
    assert code == 2 and ("has no head for" in err or "does not fit a model of type" in err)


def test_the_page_of_the_documentation_is_of_these_tasks() -> None:
    assert task_page.PAGE.read_text(encoding="utf-8") == task_page.page(), "Run python tests/task_page.py"


@pytest.mark.parametrize("task", CASES)
def test_the_program_of_the_page_gives_the_same_loss(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, rows = CASES[task]
    data = m.write_rows(tmp_path / "d.jsonl", rows) if isinstance(rows, list) else rows(tmp_path / "d.parquet")
    found = m.subject(make(tmp_path / "my-model"), data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_pacgen.pacgen", partial(pacgen, config=m.QUICK, batch_size=2, progress=False))
    trainer = SimpleNamespace(train_dataset=found.examples, data_collator=found.examples.collate_examples)
    names: dict[str, Any] = {"trainer": trainer}
    exec(task_page.snippet(Task(task)), names)
    expected = pacgen(found.model, found.examples, config=m.QUICK, batch_size=2, progress=False).loss
    assert names["result"].loss == pytest.approx(expected, rel=1e-5)
