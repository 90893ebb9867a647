"""Tasks are guessed as a person would."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
from transformers import BartConfig, BertConfig, GPT2Config, LlavaConfig, ViTConfig

from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.command_line.inputs.tasks import Task, check_settings, choose_task, trained_task
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
        (BertConfig(), "BertForSomethingOfOnesOwn", LABELED),
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


@pytest.mark.parametrize(
    ("architecture", "what"),
    [
        ("LlavaForConditionalGeneration", "images with text"),
        ("WhisperForConditionalGeneration", "speech to text by a decoder"),
        ("BertForNextSentencePrediction", "next-sentence prediction"),
        ("MaskFormerForInstanceSegmentation", "instance or panoptic segmentation"),
        ("Mask2FormerForUniversalSegmentation", "instance or panoptic segmentation.*with a loss_fn that seeds torch"),
    ],
)
def test_a_model_for_something_else_is_refused_with_what_it_is_for(architecture: str, what: str) -> None:
    config = LlavaConfig(architectures=[architecture])
    message = rf"\({architecture}\) is trained for {what}"
    with pytest.raises(InputError, match=message):
        choose_task(config, table(LABELED), arguments(), None)
    with pytest.raises(InputError, match=r"none of the tasks .*hf_pacgen.pacgen\(model, train_dataset, collate_fn="):
        choose_task(config, table(LABELED), arguments(), None)


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        (Task.SEQ2SEQ, {"eos": "add"}, "--eos is for causal-lm, and the task is seq2seq"),
        (Task.MASKED_LM, {"label_column": "label"}, "--label-column is for sequence-classification, .*is masked-lm"),
        (PICTURE, {"max_length": 8}, "--max-length is for .*, and the task is image-classification"),
        (SEQUENCE, {"template": "{text}"}, "--template is for seq2seq, causal-lm, and"),
    ],
)
def test_a_setting_that_a_task_does_not_heed_is_refused(task: Task, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_settings(task, arguments(**given))


def test_settings_that_every_task_uses() -> None:
    for task in Task:
        check_settings(task, DataArguments(dataset=["a", "b"], split="test", streaming=True))


def test_task_that_does_not_fit_the_model() -> None:
    with pytest.raises(
        InputError, match="--task causal-lm does not fit a model of type 'vit', which can do image-class"
    ):
        choose_task(ViTConfig(), table(PICTURES), arguments(), CAUSAL)


def test_a_model_with_its_own_code_says_what_it_is_for() -> None:
    config = BertConfig()
    config.architectures, config.auto_map = ["OwnModel"], {"AutoModelForCausalLM": "own.OwnModel"}
    assert trained_task(config) is CAUSAL
