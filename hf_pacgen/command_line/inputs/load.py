"""What a command measures: a model with its training data, by their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_pacgen.command_line.inputs.columns import Columns, choose_columns, choose_task
from hf_pacgen.command_line.inputs.examples import Examples, image_examples, text_examples
from hf_pacgen.command_line.inputs.labels import encode_labels
from hf_pacgen.command_line.inputs.models import (
    LoadedModel,
    ModelArguments,
    Task,
    load_config,
    load_model,
    trained_task,
)
from hf_pacgen.command_line.inputs.processors import load_processor, load_tokenizer
from hf_pacgen.command_line.inputs.tables import DataArguments, check_files, load_table

__all__ = ["Subject", "load_subject"]

MAX_NAME = 40
"""Characters of a model's path up to which it is shown in full."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with its training data, ready to be measured.

    Attributes:
        title: names both.
        notes: what was assumed about them, in sentences.
    """

    model: Any
    examples: Examples
    title: str
    notes: tuple[str, ...]


def load_subject(
    name: str, model_args: ModelArguments, data_args: DataArguments, *, device: torch.device, seed: int = 0
) -> Subject:
    """The model and its training data; a head that the checkpoint lacks is made for the data's labels.

    Raises:
        InputError: one of them cannot be loaded, or they do not fit.
    """
    check_files(data_args)
    config = load_config(name, model_args)
    table = load_table(data_args)
    task = choose_task(config, table, data_args, model_args.task)
    columns = choose_columns(table, data_args, task)
    new_head = trained_task(config) is not task
    labels = encode_labels(table, columns.label, config, new_head=new_head) if columns.label is not None else None
    if task is Task.IMAGE_CLASSIFICATION and labels is not None:
        examples = image_examples(table, columns, load_processor(name, model_args), config, labels=labels)
    else:
        tokenizer = load_tokenizer(name, model_args)
        examples = text_examples(table, columns, tokenizer, config, labels=labels, max_length=data_args.max_length)
        if getattr(config, "pad_token_id", None) is None:
            # without one, a classifier on GPT-2 or Llama cannot find the last token of a padded text
            config.pad_token_id = next(
                (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0
            )
    num_labels = labels.num_labels if labels is not None and new_head else None
    loaded = load_model(name, model_args, config, task, num_labels=num_labels, device=device, seed=seed)
    notes = (*_untrained(loaded, task, new_head, seed), *(labels.notes if labels is not None else ()), *examples.notes)
    return Subject(
        model=loaded.model, examples=examples, title=_title(name, data_args, columns, len(examples)), notes=notes
    )


def _untrained(loaded: LoadedModel, task: Task, new_head: bool, seed: int) -> tuple[str, ...]:
    new = loaded.new_parameters
    if not new:
        return ()
    listing = ", ".join(new[:4]) + (f" and {len(new) - 4} more" if len(new) > 4 else "")
    what = f"no trained head for {task.value}" if new_head else "not all of the model's parameters"
    return (
        f"The checkpoint has {what}: {listing} were initialized at random (seed {seed}), so these numbers describe a "
        "model that is not trained for this data yet. Fine-tune it, and score the folder in which you save it.",
    )


def _title(name: str, args: DataArguments, columns: Columns, count: int) -> str:
    model = name if len(name) <= MAX_NAME else "/".join(("...", *Path(name).parts[-2:]))
    files = [Path(file).name if Path(file).exists() else file for file in args.dataset]
    data = ", ".join(files[:2]) + (f" and {len(files) - 2} more" if len(files) > 2 else "")
    used = " -> ".join(
        part
        for part in (
            ", ".join(filter(None, (columns.text, columns.text_pair, columns.image))),
            columns.label,
        )
        if part
    )
    return f"PACGen of {model} on {data} ({used}; {count:,} rows)"
