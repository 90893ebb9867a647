"""A model by its name, where the data may be at hand already."""

from __future__ import annotations

import os
from typing import Any

from hf_pacgen.command_line.inputs.load import load_subject
from hf_pacgen.command_line.inputs.models import (
    ModelArguments,
    Task,
    choose_device,
    load_config,
    load_model,
    trained_task,
)
from hf_pacgen.command_line.inputs.tables import DataArguments
from hf_pacgen.errors import InputError

__all__ = ["load_named"]


def load_named(
    model: str | os.PathLike[str], data: Any, *, seed: int = 0, device: str = "auto"
) -> tuple[Any, Any, tuple[str, ...]]:
    """A model from a folder or the hub, its data, and sentences on what was assumed about them.

    Args:
        model: a folder, or the id of a model on the hub.
        data: what :func:`hf_pacgen.pacgen` takes; or the name of a data set (a file, a folder or a hub id), which
            is then tokenized or decoded as ``hf-pacgen score`` does it.
        seed: of parameters that the checkpoint lacks.
        device: where the model goes; 'auto' is a GPU if there is one.

    Raises:
        InputError: one of them cannot be loaded, or the model has no head for a task.
    """
    name, args, where = os.fspath(model), ModelArguments(), choose_device(device)
    if isinstance(data, (str, os.PathLike)):
        subject = load_subject(name, args, DataArguments(dataset=[os.fspath(data)]), device=where, seed=seed)
        return subject.model, subject.examples, subject.notes
    config = load_config(name, args)
    task = trained_task(config)
    if task is None:
        known = ", ".join(task.value for task in Task)
        raise InputError(
            f"The model {name!r} has no head for one of {known}, so there is no loss to look at. "
            "Give a fine-tuned model, or load it with the head you want and pass the model itself."
        )
    loaded = load_model(name, args, config, task, device=where, seed=seed)
    new = loaded.new_parameters
    if not new:
        return loaded.model, data, ()
    note = f"The checkpoint lacks {', '.join(new[:4])}{', ...' if len(new) > 4 else ''}: initialized at random."
    return loaded.model, data, (note,)
