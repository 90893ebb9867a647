"""What a run is of: checksums by which two processes, or two sittings, know that they do the same work."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import numbers
import os
from collections.abc import Mapping
from enum import Enum
from types import CodeType
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hf_pacgen.config.settings import Config
from hf_pacgen.data.batches import Batches, length
from hf_pacgen.data.checksums import batch_checksum, checksum
from hf_pacgen.distributed.processes import Processes
from hf_pacgen.model.state import unwrap

__all__ = [
    "BUFFERS",
    "agree",
    "arguments",
    "batch_checksum",
    "checksum",
    "described",
    "differences",
    "identity",
    "qualified_name",
]

BUFFERS = "the values of the buffer"
"""The group of what DistributedDataParallel lets differ between processes, such as running statistics."""
DATA = ("data", "test_data", "held_out", "training_data")
"""Arguments that are data, of which the length is compared first."""
SAMPLED = 16
"""Batches of the data that are compared: a pass over all of it would cost as much as a measure."""
MOST_NAMED = 5
"""Differences that are spelled out in a message."""


def identity(model: nn.Module, batches: Batches, config: Config | None, loss: str) -> dict[str, dict[str, Any]]:
    """Settings, model, loss and data of a run, as JSON-able values by group and name.

    Weights and buffers count with their values, frozen ones too; data with its length and a sample of its batches.
    """
    tensors, buffers = _tensors(model), [name for name, _ in model.named_buffers()]
    return {
        "the setting": {} if config is None else config.to_dict(),
        "the": {
            "class of the model": type(model).__name__,
            "loss": loss,
            "length of the data": length(batches.data),
            "batch size": batches.batch_size if batches.indices is not None else None,
        },
        "the form of": {name: _form(tensor) for name, tensor in tensors.items()},
        # of weights that are spread over processes each has another part
        "the values of": {name: checksum(t) for name, t in tensors.items() if name not in buffers and has_bits(t)}
        | {
            f"{f'batch {index}' if index else 'the first batch'} of the data": batch_checksum(batch)
            for index, batch in batches.sample(SAMPLED)
        },
        "the model's setting": _settings(model),
        BUFFERS: {name: checksum(tensors[name]) for name in buffers if name in tensors},
    }


def arguments(measure: str, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a process is about to measure, from the arguments as the caller gave them, in the groups of an identity."""
    model = unwrap(given["model"])
    the: dict[str, Any] = {"measure": measure, "class of the model": type(model).__name__}
    settings: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in given.items():
        if name in DATA:
            the[f"length of the {name}"] = length(value)
        elif name == "config" and isinstance(value, Config):
            settings = value.to_dict()
        elif name == "checkpoint_dir":  # processes may see one folder under different names
            others["checkpoint_dir is given"] = value is not None
        elif name not in ("model", "accelerator", "progress"):
            others |= described(name, value)
    forms = {name: _form(t) for name, t in _tensors(model).items()} if isinstance(model, nn.Module) else {}
    return {"the": the, "the setting": settings, "the argument": others, "the form of": forms}


def described(name: str, value: Any) -> dict[str, Any]:
    """An argument in values that can be sent, compared and shown: what is inside by its place, tensors by checksum."""
    if isinstance(value, nn.Module):
        value = {"class": type(value).__name__, **value.state_dict()}
    elif isinstance(value, Config):
        value = value.to_dict()
    elif dataclasses.is_dataclass(value) and not callable(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        value = {key: field for key, field in fields.items() if isinstance(field, (str, int, float))}
    if isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        return {path: what for key, item in items for path, what in described(f"{name}[{key!r}]", item).items()}
    if isinstance(value, Tensor):
        known = has_bits(value)
        return {name: f"{_form(value)}, checksum {checksum(value)}" if known else _form(value)}
    if isinstance(value, Enum):
        value = value.value
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    plain = value is None or isinstance(value, (str, numbers.Real))
    return {name: value if value == value else "nan"} if plain else _function(name, value)


def has_bits(tensor: Tensor) -> bool:
    """Whether a tensor's values can be read bit by bit here: not those on no device, nor of tensors made of others."""
    return not tensor.is_meta and not is_traceable_wrapper_subclass(tensor)


def qualified_name(function: Any) -> str:
    """The name of a function, or of an object's class, with that of what it was defined in."""
    function = function.func if isinstance(function, functools.partial) else function
    return getattr(function, "__qualname__", type(function).__qualname__)


def _function(name: str, function: Any) -> dict[str, Any]:
    """A function by its name, its code, and the plain values that it holds; an object by its class and such values."""
    held: dict[str, Any] = {}
    inner = function
    if isinstance(function, functools.partial):  # an object of the user's may have attributes of these names
        held |= {f"{name}({key})": value for key, value in (*enumerate(function.args), *function.keywords.items())}
        inner = function.func
    inner = getattr(inner, "__func__", inner)  # of a bound method
    code = getattr(inner, "__code__", None)
    told = {name: qualified_name(function)}
    if code is not None:
        cells = getattr(inner, "__closure__", None) or ()
        held |= {f"{name}.{free}": _inside(cell) for free, cell in zip(code.co_freevars, cells, strict=True)}
        held |= {f"{name}.default {place}": value for place, value in enumerate(inner.__defaults__ or ())}
        told[f"code of {name}"] = hashlib.blake2b(_code(code).encode(), digest_size=4).hexdigest()
    elif not isinstance(inner, type):
        held |= {f"{name}.{key}": value for key, value in getattr(inner, "__dict__", {}).items()}
    plain_values = {key: value for key, value in held.items() if isinstance(value, (str, int, float, Tensor))}
    return told | {path: what for key, v in plain_values.items() for path, what in described(key, v).items()}


def _code(code: CodeType) -> str:
    """What a function does, the same in every process: its instructions with the names and constants they take."""
    constants = [_code(c) if isinstance(c, CodeType) else c for c in code.co_consts]
    # a set has another order in another process
    known = [c for c in constants if c is None or isinstance(c, (str, int, float, tuple))]
    return repr((code.co_code, code.co_names, known))


def _inside(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def agree(processes: Processes, mine: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise on every process if two of them are about to do different work.

    Args:
        processes: all of which call this at the same place.
        mine: what this one works on, by group and name.
    """
    if processes.size == 1:
        return
    first, *others = processes.gather(mine)
    for rank, other in enumerate(others, start=1):
        found = differences(first, other, there="in process 0", here=f"in process {rank}")
        if found:
            raise ValueError(
                f"Process {rank} has another model, data or settings than process 0. These differ: {found}. "
                "Give every process the same model, the same arguments and the whole data; the batches are shared out "
                "here."
            )


def differences(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]], *, there: str, here: str
) -> str:
    """What differs between two identities, in words; empty where nothing does.

    Args:
        there, here: how to name the two, as in "0 in the checkpoint and 1 now".
    """
    found = []
    for group in now:
        old, new = before.get(group, {}), now[group]
        for name in (*old, *(n for n in new if n not in old)):
            if name not in new or name not in old:
                found.append(f"{group} {name} (only {here if name in new else there})")
            elif old[name] != new[name] and group.startswith("the values of"):
                found.append(f"{group} {name}")
            elif old[name] != new[name]:
                found.append(f"{group} {name} ({old[name]} {there} and {new[name]} {here})")
    more = f", and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return ", ".join(found[:MOST_NAMED]) + more


def _settings(model: nn.Module) -> dict[str, Any]:
    """The configuration of a transformers model, but for names of places and versions."""
    config: Any = getattr(model, "config", None)
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    known = {key: value for key, value in values.items() if not key.startswith("_") and "version" not in key}
    return {key: json.loads(json.dumps(value, default=str, sort_keys=True)) for key, value in known.items()}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in (*model.named_parameters(), *model.named_buffers()) if not t.is_meta}


def _form(tensor: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{kind} {list(tensor.shape)}{' trainable' if tensor.requires_grad else ''}"
