"""Columns are guessed as a person would."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from hf_pacgen.command_line.inputs.columns import Columns
from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.command_line.inputs.tasks import Task
from hf_pacgen.errors import InputError

TEXT, INT, CLASS, IMAGE = (
    datasets.Value("string"),
    datasets.Value("int64"),
    datasets.ClassLabel(num_classes=2),
    datasets.Image(),
)
SEQUENCE, CAUSAL, PICTURE = Task.SEQUENCE_CLASSIFICATION, Task.CAUSAL_LM, Task.IMAGE_CLASSIFICATION


def table(columns: dict[str, Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({name: [] for name in columns}, datasets.Features(columns))


def arguments(**given: str) -> DataArguments:
    return DataArguments(dataset=["data"], **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("columns", "task", "expected"),
    [
        ({"sentence": TEXT, "label": CLASS}, SEQUENCE, ("sentence", None, None, "label")),
        ({"idx": INT, "tweet": TEXT, "topic": CLASS}, SEQUENCE, ("tweet", None, None, "topic")),
        ({"Text": TEXT, "Label": TEXT}, SEQUENCE, ("Text", None, None, "Label")),
        ({"title": TEXT, "text": TEXT, "label": INT}, SEQUENCE, ("text", None, None, "label")),
        (
            {"premise": TEXT, "hypothesis": TEXT, "label": CLASS, "idx": INT},
            SEQUENCE,
            ("premise", "hypothesis", None, "label"),
        ),
        ({"id": TEXT, "body": TEXT, "stars": INT}, SEQUENCE, ("body", None, None, "stars")),
        ({"text": TEXT, "meta": TEXT}, CAUSAL, ("text", None, None, None)),
        ({"url": TEXT, "content": TEXT}, CAUSAL, ("content", None, None, None)),
        ({"img": IMAGE, "fine_label": CLASS, "coarse_label": CLASS}, PICTURE, (None, None, "img", "fine_label")),
        ({"scan": IMAGE, "label": INT, "mask": IMAGE, "image": IMAGE}, PICTURE, (None, None, "image", "label")),
        ({"image": {"bytes": datasets.Value("binary"), "path": TEXT}, "y": INT}, PICTURE, (None, None, "image", "y")),
    ],
)
def test_inferred_columns(columns: dict[str, Any], task: Task, expected: tuple[str | None, ...]) -> None:
    text, pair, image, label = expected
    found = task.facts.choose_columns(table(columns), arguments())
    assert found == Columns(text=text, text_pair=pair, image=image, label=label)


@pytest.mark.parametrize(
    ("columns", "task", "message"),
    [
        (
            {"body": TEXT, "summary": TEXT, "label": INT},
            SEQUENCE,
            r"holds the text: the data has 'body' \(text\), 'summary'",
        ),
        ({"text": TEXT, "a": CLASS, "b": CLASS}, SEQUENCE, r"holds the label: .*'a' \(2 classes\).*--label-column"),
        ({"messages": datasets.List(TEXT)}, CAUSAL, r"holds the text: the data has 'messages' \(lists of texts\)"),
        (
            {"scan": IMAGE, "mask": IMAGE, "label": INT},
            PICTURE,
            r"holds the image: .*'scan' \(images\).*--image-column",
        ),
    ],
)
def test_what_cannot_be_told(columns: dict[str, Any], task: Task, message: str) -> None:
    with pytest.raises(InputError, match=message):
        task.facts.choose_columns(table(columns), arguments())
