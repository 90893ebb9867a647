"""Tasks are guessed as a person would."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
from transformers import BartConfig, BertConfig, GPT2Config, LlavaConfig, ViTConfig

from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.command_line.inputs.tasks import Task, choose_task, trained_task
from hf_pacgen.errors import InputError

TEXT, INT, IMAGE = datasets.Value("string"), datasets.Value("int64"), datasets.Image()
SEQUENCE, CAUSAL, PICTURE = Task.SEQUENCE_CLASSIFICATION, Task.CAUSAL_LM, Task.IMAGE_CLASSIFICATION


def table(columns: dict[str, Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({name: [] for name in columns}, datasets.Features(columns))


def arguments(**given: str) -> DataArguments:
    return DataArguments(dataset=["data"], **given)  # type: ignore[arg-type]


LABELED, UNLABELED, PICTURES = {"text": TEXT, "label": INT}, {"text": TEXT}, {"image": IMAGE, "label": INT}


@pytest.mark.parametrize(
    ("config", "architecture", "columns", "expected"),
    [
        (BertConfig(), "BertForSequenceClassification", LABELED, SEQUENCE),
        (BertConfig(), "BertForMaskedLM", LABELED, Task.MASKED_LM),
        (BertConfig(), "BertForTokenClassification", LABELED, Task.TOKEN_CLASSIFICATION),
        (GPT2Config(), "GPT2LMHeadModel", LABELED, CAUSAL),
        (BartConfig(), "BartForConditionalGeneration", LABELED, Task.SEQ2SEQ),
    ],
)
def test_task_of_a_trained_model(config: Any, architecture: str, columns: dict[str, Any], expected: Task) -> None:
    config.architectures = [architecture]
    assert choose_task(config, table(columns), arguments(), None) is expected


@pytest.mark.parametrize(
    ("config", "architecture", "columns", "expected"),
    [
        (BertConfig(), "BertModel", LABELED, SEQUENCE),
        (BertConfig(), "BertForMaskedLM", LABELED, SEQUENCE),
        (BertConfig(), None, LABELED, SEQUENCE),
        (GPT2Config(), "GPT2LMHeadModel", LABELED, CAUSAL),
        (GPT2Config(), "GPT2Model", LABELED, SEQUENCE),
        (ViTConfig(), "ViTModel", PICTURES, PICTURE),
    ],
)
def test_task_of_a_random_head(config: Any, architecture: str | None, columns: dict[str, Any], expected: Task) -> None:
    config.architectures = [architecture] if architecture else None
    assert choose_task(config, table(columns), arguments(), None, random_head=True) is expected


@pytest.mark.parametrize(
    ("config", "architecture", "columns"),
    [
        (BertConfig(), "BertForNextSentencePrediction", LABELED),
        (BertConfig(), "BertModel", UNLABELED),
        (ViTConfig(), "ViTModel", LABELED),
    ],
)
def test_task_that_cannot_be_told(config: Any, architecture: str, columns: dict[str, Any]) -> None:
    config.architectures = [architecture]
    with pytest.raises(InputError, match=rf"Cannot tell the task .*\({architecture}\).*--task"):
        choose_task(config, table(columns), arguments(), None, random_head=True)


@pytest.mark.parametrize("architecture", ["BertModel", "BertForPreTraining"])
def test_a_base_model_is_called_one(architecture: str) -> None:
    config = BertConfig(architectures=[architecture])
    with pytest.raises(InputError, match=rf"\({architecture}\) is a base model: give it a trained head"):
        choose_task(config, table(LABELED), arguments(), None)


def test_a_model_with_a_head_for_something_else_is_not_called_a_base_model() -> None:
    config = LlavaConfig(architectures=["LlavaForConditionalGeneration"])
    with pytest.raises(InputError, match=r"Cannot tell the task .*\(LlavaForConditionalGeneration\)"):
        choose_task(config, table(LABELED), arguments(), None)


def test_task_that_does_not_fit_the_model() -> None:
    with pytest.raises(
        InputError, match="--task causal-lm does not fit a model of type 'vit', which can do image-class"
    ):
        choose_task(ViTConfig(), table(PICTURES), arguments(), CAUSAL)


def test_a_model_with_its_own_code_says_what_it_is_for() -> None:
    config = BertConfig()
    config.architectures, config.auto_map = ["OwnModel"], {"AutoModelForCausalLM": "own.OwnModel"}
    assert trained_task(config) is CAUSAL
