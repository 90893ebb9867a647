"""Columns of every task are guessed as a person would, and asked for where a person would ask."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.command_line.inputs.tasks import Task
from hf_pacgen.errors import InputError

TEXT, INT, IMAGE = datasets.Value("string"), datasets.Value("int64"), datasets.Image()
TEXTS, INTS, CLASSES = datasets.List(TEXT), datasets.List(INT), datasets.List(datasets.ClassLabel(num_classes=3))
SOUND = {"array": datasets.List(datasets.Value("float32")), "sampling_rate": INT}
FOUND = {"text": TEXTS, "answer_start": INTS}
BOXES = {"bbox": datasets.List(INTS), "category": INTS}


def chosen(task: str, columns: dict[str, Any], config: Any = None, **given: Any) -> str:
    table = datasets.Dataset.from_dict({name: [] for name in columns}, datasets.Features(columns))
    return Task(task).facts.choose_columns(table, DataArguments(dataset=["data"], **given), config).title


@pytest.mark.parametrize(
    ("task", "columns", "expected"),
    [
        (
            "token-classification",
            {"id": TEXT, "tokens": TEXTS, "ner_tags": CLASSES, "pos_tags": CLASSES},
            "tokens -> ner_tags",
        ),
        ("token-classification", {"words": TEXTS, "upos": TEXTS}, "words -> upos"),
        (
            "question-answering",
            {"title": TEXT, "context": TEXT, "question": TEXT, "answers": FOUND},
            "question, context -> answers",
        ),
        ("seq2seq", {"id": TEXT, "dialogue": TEXT, "summary": TEXT}, "dialogue -> summary"),
        ("seq2seq", {"source": TEXT, "target": TEXT}, "source -> target"),
        ("masked-lm", {"text": TEXT, "label": INT}, "text"),
        (
            "multiple-choice",
            {"startphrase": TEXT, "sent1": TEXT, "sent2": TEXT, "ending0": TEXT, "ending1": TEXT, "label": INT},
            "sent1, sent2, ending0, ending1 -> label",
        ),
        ("multiple-choice", {"question": TEXT, "options": TEXTS, "answer": TEXT}, "question, options -> answer"),
        (
            "multiple-choice",  # RACE
            {"article": TEXT, "question": TEXT, "options": TEXTS, "answer": TEXT},
            "article, question, options -> answer",
        ),
        (
            "multiple-choice",  # HellaSwag, whose ctx is its two parts
            {"ctx_a": TEXT, "ctx_b": TEXT, "ctx": TEXT, "endings": TEXTS, "label": TEXT},
            "ctx_a, ctx_b, endings -> label",
        ),
        ("image-segmentation", {"image": IMAGE, "annotation": IMAGE}, "image -> annotation"),
        ("image-segmentation", {"photo": IMAGE, "map": IMAGE}, "photo -> map"),
        ("image-classification", {"file_name": TEXT, "label": TEXT}, "file_name -> label"),
        ("object-detection", {"image_id": INT, "image": IMAGE, "objects": BOXES}, "image -> objects"),
        ("audio-classification", {"file": TEXT, "audio": SOUND, "label": INT}, "audio -> label"),
        ("ctc", {"path": TEXT, "audio": SOUND, "sentence": TEXT}, "audio -> sentence"),
        ("ctc", {"file": TEXT, "transcription": TEXT}, "file -> transcription"),
    ],
)
def test_columns(task: str, columns: dict[str, Any], expected: str) -> None:
    assert chosen(task, columns) == expected


def test_columns_that_are_named() -> None:
    several = {"a": TEXT, "b": TEXT, "c": TEXT, "d": TEXT, "n": INT}
    assert (
        chosen("multiple-choice", several, text_column="a", choice_columns=["b", "c"], label_column="n")
        == "a, b, c -> n"
    )
    assert (
        chosen(
            "question-answering",
            {"q": TEXT, "c": TEXT, "found": FOUND},
            text_column="q",
            text_pair_column="c",
            label_column="found",
        )
        == "q, c -> found"
    )
    assert chosen("seq2seq", several, text_column="d", label_column="a") == "d -> a"
    nested = {"translation": datasets.Translation(languages=("en", "de"))}
    flags = {"text_column": "translation.en", "label_column": "translation.de"}
    assert chosen("seq2seq", nested, **flags) == "translation.en -> translation.de"


def test_a_column_for_each_label() -> None:
    config = SimpleNamespace(problem_type="multi_label_classification", num_labels=2, id2label={0: "joy", 1: "fear"})
    columns = {"text": TEXT, "joy": INT, "fear": INT, "likes": INT}
    assert chosen("sequence-classification", columns, config) == "text -> joy, fear"
    assert chosen("sequence-classification", columns, config, label_column="likes") == "text -> likes"


@pytest.mark.parametrize(
    ("task", "columns", "message"),
    [
        ("token-classification", {"text": TEXT, "label": INT}, "which column holds the words: .*--text-column"),
        ("token-classification", {"tokens": TEXTS, "label": INT}, "which column holds the tags: .*--label-column"),
        (
            "question-answering",
            {"question": TEXT, "text": TEXT},
            "which column holds the context: .*--text-pair-column",
        ),
        ("question-answering", {"question": TEXT, "context": TEXT, "answer": TEXT}, "which column holds the answers"),
        ("seq2seq", {"text": TEXT, "other": TEXT, "third": TEXT}, "which column holds the source: .*--text-column"),
        ("multiple-choice", {"question": TEXT, "label": INT}, "which column holds the choices: .*--choice-columns"),
        ("object-detection", {"image": IMAGE, "label": INT}, "which column holds the objects"),
        ("image-segmentation", {"image": IMAGE, "label": INT}, "which column holds the mask"),
        ("audio-classification", {"text": INT, "label": INT}, "which column holds the audio: .*--audio-column"),
        ("ctc", {"audio": SOUND, "n": INT}, "which column holds the transcription"),
    ],
)
def test_what_cannot_be_told(task: str, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chosen(task, columns)


@pytest.mark.parametrize(
    ("task", "columns", "left", "taken"),
    [
        ("seq2seq", {"instruction": TEXT, "input": TEXT, "output": TEXT}, "instruction", "input -> output"),
        ("seq2seq", {"question": TEXT, "context": TEXT, "answer": TEXT}, "context", "question -> answer"),
        (
            "multiple-choice",  # COPA
            {"premise": TEXT, "question": TEXT, "choice1": TEXT, "choice2": TEXT, "label": INT},
            "premise",
            "question, choice1, choice2 -> label",
        ),
        ("sequence-classification", {"paragraph": TEXT, "question": TEXT, "label": INT}, "paragraph", "question"),
        ("causal-lm", {"system_prompt": TEXT, "question": TEXT, "response": TEXT}, "system_prompt", "question"),
        ("causal-lm", {"question": TEXT, "context": TEXT, "answer": TEXT}, "context", "question -> answer"),
    ],
)
def test_half_an_example_is_not_taken_in_silence(task: str, columns: dict[str, Any], left: str, taken: str) -> None:
    with pytest.raises(InputError, match=f"The columns {taken}.* would be taken, and '{left}' may be a part of what"):
        chosen(task, columns)


@pytest.mark.parametrize(("task", "trainer"), [("sequence-classification", "Reward"), ("causal-lm", "DPO")])
def test_preferences_are_for_their_trainers(task: str, trainer: str) -> None:
    columns = {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT, "label": INT}
    with pytest.raises(InputError, match=f"data are preferences .* inside your {trainer}Trainer, by a PACGenCallback"):
        chosen(task, columns)
    assert chosen(task, columns, text_column="chosen", label_column="rejected" if trainer == "DPO" else "label")


def test_a_template_of_source_and_target() -> None:
    columns = {"question": TEXT, "context": TEXT, "answer": TEXT}
    assert chosen("seq2seq", columns, template="{question} {context} {answer}") == "question, context -> answer"
    with pytest.raises(
        InputError, match=r"--template '\{question\}' names one column: expected the source and then the"
    ):
        chosen("seq2seq", columns, template="{question}")


def test_entries_that_are_not_there() -> None:
    with pytest.raises(
        InputError, match=r"no column 'translation.fr'; it has 'translation' \(dictionaries of en, de\)"
    ):
        chosen("seq2seq", {"translation": {"en": TEXT, "de": TEXT}}, text_column="translation.fr", label_column="x")
    with pytest.raises(InputError, match=r"'joy' holds text, expected lists of words. Correct --text-column"):
        chosen("token-classification", {"joy": TEXT}, text_column="joy")
