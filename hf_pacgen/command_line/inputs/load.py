"""What a command measures: a model with its training data, by their names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_pacgen.command_line.inputs.columns import Columns
from hf_pacgen.command_line.inputs.data import DataArguments, check_files, load_table
from hf_pacgen.command_line.inputs.examples import Examples
from hf_pacgen.command_line.inputs.labels import encode_labels
from hf_pacgen.command_line.inputs.models import (
    ModelArguments,
    choose_device,
    load_config,
    load_model,
    processor_of,
)
from hf_pacgen.command_line.inputs.runs import chosen
from hf_pacgen.command_line.inputs.tasks import Task, choose_task, trained_task
from hf_pacgen.errors import InputError, few

MAX_NAME = 40  # characters of a model's path up to which it is shown in full


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with its training data, ready to be measured."""

    model: Any
    examples: Examples
    title: str  # names both
    notes: tuple[str, ...]  # what was assumed about them, in sentences


def load_subject(
    name: str, model_args: ModelArguments, data_args: DataArguments, *, device: torch.device, seed: int = 0
) -> Subject:
    """The model and its training data; a head that the checkpoint lacks is made for the data's labels."""
    check_files(data_args)
    config = load_config(name, model_args)
    table = load_table(data_args)  # after the configuration, which is quicker to fetch and to refuse
    task = choose_task(config, table, data_args, model_args.task)
    columns = task.facts.choose_columns(table, data_args)
    # a head for another task is no head for this one
    new_head = trained_task(config) is not task
    labels = encode_labels(table, columns.label, config, new_head=new_head) if columns.label is not None else None
    place, source = processor_of(name, model_args)
    processor = task.facts.load_processor(place, **source)
    examples = task.facts.make_examples(
        table, columns, processor, config, labels=labels, max_length=data_args.max_length
    )
    # the weights come last: they take longest, and all that can be refused without them has been
    num_labels = labels.num_labels if labels is not None and new_head else None
    model, new = load_model(name, model_args, config, task, num_labels=num_labels, device=device, seed=seed)
    notes = (*_untrained(new, task, new_head, seed), *(labels.notes if labels is not None else ()), *examples.notes)
    return Subject(model=model, examples=examples, title=_title(name, data_args, columns, len(examples)), notes=notes)


def _untrained(new: tuple[str, ...], task: Task, new_head: bool, seed: int) -> tuple[str, ...]:
    if not new:
        return ()
    what = f"no trained head for {task.value}" if new_head else "not all of the model's parameters"
    return (
        f"The checkpoint has {what}: {few(new)} were initialized at random (seed {seed}), so these numbers describe a "
        "model that is not trained for this data yet. Fine-tune it, and score the folder in which you save it.",
    )


def _title(name: str, args: DataArguments, columns: Columns, count: int) -> str:
    model = name if len(name) <= MAX_NAME else "/".join(("...", *Path(name).parts[-2:]))
    # an id on the hub is shown with its owner, a path without its folders
    files = [Path(file).name if Path(file).exists() else file for file in args.dataset]
    inputs = ", ".join(filter(None, (columns.text, columns.text_pair, columns.image)))
    return f"{model} on {few(files, 2)} ({' -> '.join(filter(None, (inputs, columns.label)))}; {count:,} rows)"


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
    loaded, new = load_model(name, args, config, task, device=where, seed=seed)
    return loaded, data, (f"The checkpoint lacks {few(new)}: initialized at random.",) if new else ()
