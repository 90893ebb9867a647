"""What a command measures: a model with its training data, by their names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch

from hf_pacgen.command_line.inputs.columns import Columns, cells, feature_of
from hf_pacgen.command_line.inputs.data import DataArguments, check_files, load_rows
from hf_pacgen.command_line.inputs.examples import Material, shown_example
from hf_pacgen.command_line.inputs.labels import Labels
from hf_pacgen.command_line.inputs.models import (
    ModelArguments,
    choose_device,
    load_config,
    load_model,
    processor_of,
)
from hf_pacgen.command_line.inputs.recorded import as_trained, length_of, recorded, with_text_column
from hf_pacgen.command_line.inputs.runs import chosen
from hf_pacgen.command_line.inputs.tasks import Task, check_settings, choose_task, trained_task
from hf_pacgen.data.losses import IGNORED
from hf_pacgen.errors import InputError, few, refusing

MAX_NAME = 40  # characters of a model's path up to which it is shown in full


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with its training data, ready to be measured."""

    model: Any
    examples: Any  # a dataset, or a stream of examples
    title: str  # names both, and shows an example in a second line
    notes: tuple[str, ...]  # what was assumed about them, in sentences
    labels: Labels | None = None  # how raw labels became the model's
    processor: Any = None  # what made the examples of the data: a tokenizer, an image processor, several of them


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The data of a model, ready to be measured, and what is known of the model without its weights."""

    config: Any
    task: Task
    new_head: bool  # whether the model gets a head for the data's labels, made at random
    labels: Labels | None
    examples: Any
    title: str
    notes: tuple[str, ...]
    processor: Any


def load_subject(
    name: str, model_args: ModelArguments, data_args: DataArguments, *, device: torch.device, seed: int = 0
) -> Subject:
    """The model and its training data; with ``random_head``, one that it lacks is made for the data's labels."""
    data = load_data(name, model_args, data_args)
    labels, task, new_head = data.labels, data.task, data.new_head
    # the weights come last: they take longest, and all that can be refused without them has been
    num_labels = labels.num_labels if labels is not None and new_head else None
    model, new = load_model(name, model_args, data.config, task, num_labels=num_labels, device=device, seed=seed)
    notes = (*_untrained(new, task, new_head, seed), *data.notes)
    made: Any = {"examples": data.examples, "processor": data.processor}
    return Subject(model=model, title=data.title, notes=notes, labels=labels, **made)


def load_data(
    name: str, model_args: ModelArguments, data_args: DataArguments, *, labels: Labels | None = None
) -> Prepared:
    """The data that a model is measured on; of the model its configuration and its processor alone are read.

    Args:
        labels: those of the training data, where this is other data of the same model.
    """
    check_files(data_args)
    config = load_config(name, model_args)
    table, stream = load_rows(data_args)  # after the configuration, which is quicker to fetch and to refuse
    task = choose_task(config, table, data_args, model_args.task, random_head=model_args.random_head)
    facts = task.facts
    check_settings(task, data_args)
    # only a causal language model's texts are made in more than one way
    run = recorded(name) if facts.causal else {}
    data_args = with_text_column(data_args, run, table)
    columns = facts.choose_columns(table, data_args, config)
    # a head for another task is no head for this one
    new_head = model_args.random_head and trained_task(config) is not task
    if labels is None and facts.make_labels is not None:
        labels = facts.make_labels(table, columns, config, new_head=new_head)
    place, source = processor_of(name, model_args)
    processor = facts.load_processor(place, config, **source)
    ending = getattr(processor, "eos_token", None)
    data_args, taken = as_trained(data_args, run, columns, table, ending)
    examples = facts.make_examples(
        Material(
            table=table,
            columns=columns,
            processor=processor,
            config=config,
            labels=labels,
            args=data_args,
            stream=stream,
            length=length_of(run),
        )
    )
    shown = _example(task, table, columns, processor, examples)
    rows = "streamed" if stream is not None else f"{len(table):,} rows"
    return Prepared(
        config=config,
        task=task,
        new_head=new_head,
        labels=labels,
        examples=examples,
        title=f"{_title(name, data_args)} ({columns.title}; {rows})\n{shown}",
        notes=(*taken, *examples.notes),
        processor=processor,
    )


def _example(task: Task, table: Any, columns: Columns, processor: Any, examples: Any) -> str:
    """What was taken as input and as label, by one example, in a line."""
    if task.facts.shows_tokens:
        example = next(iter(examples), None)
        if example is None:  # of a stream, whose rows were not looked at before
            raise InputError(f"All texts in the column {columns.text!r} are empty: there is no token to predict.")
        pairs = list(zip(example["input_ids"], example["labels"], strict=True))
        counted = [label for _, label in pairs if label != IGNORED]
        given = [token for token, label in pairs if label == IGNORED or task is Task.MASKED_LM] or counted
        return shown_example([processor.decode(given)], processor.decode(counted))
    with refusing("The first row of the data cannot be read", "Repair or remove it."):  # an image, for one
        first = table.select_columns([name for name in columns.used if name != columns.audio])[:1]
    inputs = ["a sound" if name == columns.audio else cells(first, name)[0] for name in columns.inputs]
    outputs = [_class_name(feature_of(table, name), cells(first, name)[0]) for name in columns.outputs]
    return shown_example(inputs, outputs[0] if len(outputs) == 1 else outputs)


def _class_name(feature: Any, value: Any) -> Any:
    return feature.int2str(value) if isinstance(feature, datasets.ClassLabel) and value >= 0 else value


def _untrained(new: tuple[str, ...], task: Task, new_head: bool, seed: int) -> tuple[str, ...]:
    if not new:
        return ()
    what = f"no trained head for {task.value}" if new_head else "not all of the model's parameters"
    return (
        f"The checkpoint has {what}: {few(new)} were initialized at random (seed {seed}), so these numbers describe a "
        "model that is not trained for this data yet. Fine-tune it, and score the folder in which you save it.",
    )


def _title(name: str, args: DataArguments) -> str:
    model = name if len(name) <= MAX_NAME else "/".join(("...", *Path(name).parts[-2:]))
    # an id on the hub is shown with its owner, a path without its folders
    files = [Path(file).name if Path(file).exists() else file for file in args.dataset]
    return f"{model} on {few(files, 2)}"


def load_named(
    model: str | os.PathLike[str], data: Any, *, seed: int = 0, device: str = "auto"
) -> tuple[Any, Any, tuple[str, ...]]:
    """A model by its name where the data may be at hand already; with it the data, and what was assumed of both.

    ``data`` is what :func:`hf_pacgen.pacgen` takes, or the name of a data set, which is then tokenized or decoded as
    ``hf-pacgen score`` does it.
    """
    name, args, where = chosen(os.fspath(model)), ModelArguments(), choose_device(device)
    if isinstance(data, (str, os.PathLike)):
        subject = load_subject(name, args, DataArguments(dataset=[os.fspath(data)]), device=where, seed=seed)
        return subject.model, subject.examples, subject.notes
    config = load_config(name, args)
    task = trained_task(config)
    if task is None:
        raise InputError(
            f"The model {name!r} has no head for one of {', '.join(Task)}, so there is no loss to look at. "
            "Give a fine-tuned model, or load it with the head you want and pass the model itself."
        )
    loaded, _ = load_model(name, args, config, task, device=where, seed=seed)
    return loaded, data, ()
