"""Columns and tasks are guessed as a person would."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
from transformers import BertConfig, GPT2Config, ViTConfig

from hf_pacgen.command_line.inputs.columns import Columns, choose_columns, choose_task
from hf_pacgen.command_line.inputs.models import Task
from hf_pacgen.command_line.inputs.tables import DataArguments
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
    found = choose_columns(table(columns), arguments(), task)
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
        ({"messages": datasets.List(TEXT)}, CAUSAL, r"holds the text: the data has 'messages' \(lists\)"),
        (
            {"scan": IMAGE, "mask": IMAGE, "label": INT},
            PICTURE,
            r"holds the image: .*'scan' \(images\).*--image-column",
        ),
    ],
)
def test_what_cannot_be_told(columns: dict[str, Any], task: Task, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_columns(table(columns), arguments(), task)


LABELED, UNLABELED, PICTURES = {"text": TEXT, "label": INT}, {"text": TEXT}, {"image": IMAGE, "label": INT}


@pytest.mark.parametrize(
    ("config", "architecture", "columns", "expected"),
    [
        (BertConfig(), "BertForSequenceClassification", LABELED, SEQUENCE),
        (BertConfig(), "BertModel", LABELED, SEQUENCE),
        (BertConfig(), "BertForMaskedLM", LABELED, SEQUENCE),
        (BertConfig(), None, LABELED, SEQUENCE),
        (GPT2Config(), "GPT2LMHeadModel", LABELED, CAUSAL),
        (GPT2Config(), "GPT2Model", LABELED, SEQUENCE),
        (ViTConfig(), "ViTModel", PICTURES, PICTURE),
    ],
)
def test_task(config: Any, architecture: str | None, columns: dict[str, Any], expected: Task) -> None:
    config.architectures = [architecture] if architecture else None
    assert choose_task(config, table(columns), arguments(), None) is expected


@pytest.mark.parametrize(
    ("config", "architecture", "columns"),
    [
        (BertConfig(), "BertForTokenClassification", LABELED),
        (BertConfig(), "BertModel", UNLABELED),
        (ViTConfig(), "ViTModel", LABELED),
    ],
)
def test_task_that_cannot_be_told(config: Any, architecture: str, columns: dict[str, Any]) -> None:
    config.architectures = [architecture]
    with pytest.raises(InputError, match=rf"Cannot tell the task .*\({architecture}\).*--task"):
        choose_task(config, table(columns), arguments(), None)


def test_task_that_does_not_fit_the_model() -> None:
    with pytest.raises(
        InputError, match="--task causal-lm does not fit a model of type 'vit', which can do image-class"
    ):
        choose_task(ViTConfig(), table(PICTURES), arguments(), CAUSAL)
