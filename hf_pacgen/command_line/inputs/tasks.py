"""The tasks of models.  All that depends on a task is its facts: another task is one more member."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from transformers.models.auto import modeling_auto

from hf_pacgen.command_line.inputs import columns, examples, processors
from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.errors import InputError
from hf_pacgen.facts import Choice

__all__ = ["Task", "TaskFacts", "choose_task", "trained_task"]


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """All that the command line knows of one task.

    Attributes:
        auto_class: the class of transformers that loads a model with the task's head.
        heads: the classes that have such a head, by the type of the model.
        choose_columns: the columns that the task needs, as given or inferred.
        suits: whether data asks for this task, if the model is an encoder without a head; None if that cannot be told.
        load_processor: loads what turns raw rows into the model's inputs.
        make_examples: makes the inputs and their labels from rows.
        causal: each token is predicted from those before it, so the model must not see the later ones.
    """

    auto_class: str
    heads: Mapping[str, str | Sequence[str]]
    choose_columns: Callable[[datasets.Dataset, DataArguments], columns.Columns]
    suits: Callable[[datasets.Dataset, DataArguments], bool] | None = None
    load_processor: Callable[..., Any]
    make_examples: Callable[..., examples.Examples]
    causal: bool = False


class Task(Choice):
    """What the model is trained for."""

    facts: TaskFacts

    SEQUENCE_CLASSIFICATION = (
        "sequence-classification",
        TaskFacts(
            auto_class="AutoModelForSequenceClassification",
            heads=modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
            choose_columns=columns.texts_and_label,
            suits=columns.has_label,
            load_processor=processors.load_tokenizer,
            make_examples=examples.text_examples,
        ),
    )
    CAUSAL_LM = (
        "causal-lm",
        TaskFacts(
            auto_class="AutoModelForCausalLM",
            heads=modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            choose_columns=columns.text_alone,
            load_processor=processors.load_tokenizer,
            make_examples=examples.text_examples,
            causal=True,
        ),
    )
    IMAGE_CLASSIFICATION = (
        "image-classification",
        TaskFacts(
            auto_class="AutoModelForImageClassification",
            heads=modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
            choose_columns=columns.image_and_label,
            suits=columns.has_images,
            load_processor=processors.load_image_processor,
            make_examples=examples.image_examples,
        ),
    )


ENCODERS = (
    modeling_auto.MODEL_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES,
)
"""Classes of pretrained encoders, on which a head for any task can be put."""


def choose_task(config: Any, table: datasets.Dataset, args: DataArguments, asked: Task | None) -> Task:
    """The task: as asked, by the checkpoint's head, or by what the data holds for an encoder without one."""
    possible, trained = [task for task in Task if config.model_type in task.facts.heads], trained_task(config)
    if asked is not None:
        if possible and asked not in possible and asked is not trained:
            raise InputError(
                f"--task {asked.value} does not fit a model of type {config.model_type!r}, which can do "
                f"{', '.join(task.value for task in possible)}."
            )
        return asked
    if trained is not None:
        return trained
    architectures = getattr(config, "architectures", None) or []
    if _class_names(*ENCODERS).issuperset(architectures):  # else it has a head for something else
        for task in reversed(possible):  # images first: a table of images has labels as well
            if task.facts.suits is not None and task.facts.suits(table, args):
                return task
    raise InputError(
        f"Cannot tell the task of the model from its config.json ({', '.join(architectures) or 'no architecture'}): "
        f"expected a model for one of {', '.join(Task)}. Give it with --task; for other tasks call "
        "hf_pacgen.pacgen() from Python."
    )


def trained_task(config: Any) -> Task | None:
    """The task whose head the checkpoint has, read from its architecture; None for an encoder without a head."""
    for architecture in getattr(config, "architectures", None) or []:
        for task in Task:
            if architecture in _class_names(task.facts.heads):
                return task
    own_code = getattr(config, "auto_map", None) or {}
    return next((task for task in Task if task.facts.auto_class in own_code), None)


def _class_names(*tables: Mapping[str, str | Sequence[str]]) -> set[str]:
    entries = [names for table in tables for names in table.values()]
    return {name for names in entries for name in ([names] if isinstance(names, str) else names)}
