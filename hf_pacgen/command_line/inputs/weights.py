"""The checksum of a saved model's weights, to know whether a result is of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_pacgen.command_line.inputs.adapters import put_on
from hf_pacgen.command_line.inputs.models import ModelArguments, load_config
from hf_pacgen.command_line.inputs.runs import checkpoints, is_model
from hf_pacgen.command_line.quiet import quiet
from hf_pacgen.errors import InputError, refusing
from hf_pacgen.model.fingerprint import tensors_fingerprint, weights_fingerprint


def is_of(folder: Path, known: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a folder has the weights that a result knows, and their checksum; of a run, one of its checkpoints.

    Args:
        known: the ``model`` of a result's origin.

    Raises:
        InputError: the weights cannot be read.
    """
    found = [] if is_model(folder) else checkpoints(folder)
    # of a run the checkpoint that was scored, else the last
    scored = Path(str(known.get("name"))).name
    place = next((path for path in found if path.name == scored), found[-1] if found else folder)
    if (adapter := known.get("adapter")) is not None:
        saved = ModelArguments().adapter(str(place))
        checksum = "" if saved is None else tensors_fingerprint(saved.weights())
        return checksum == adapter, checksum
    checksum = str(folder_fingerprint(place, dtype=known.get("dtype"), load_in_4bit=bool(known.get("load_in_4bit"))))
    return checksum == known["weights"], checksum


def folder_fingerprint(folder: Path, *, dtype: str | None = None, load_in_4bit: bool = False) -> str | None:
    """The :func:`weights_fingerprint` of the model in a folder, loaded by the class that its configuration names.

    Args:
        dtype: in which the weights are loaded; by default as they were saved.
        load_in_4bit: whether the base of an adapter is quantized.

    Raises:
        InputError: there are no weights, or they cannot be loaded.
    """
    name, args = str(folder), ModelArguments()
    adapter, config = args.adapter(name), load_config(name, args)
    kind = getattr(transformers, next(iter(config.architectures or []), ""), None)
    if kind is None:
        raise InputError(f"config.json of {name!r} names no class of transformers in 'architectures'")
    options: dict[str, Any] = {"dtype": dtype or "auto"}
    if load_in_4bit:
        # on another device the same weights are packed in another way
        raise InputError("a base in 4 bits has no checksum that is the same everywhere")
    with quiet(), refusing(f"The model in the folder {name!r} cannot be loaded", "Save it again."):
        with torch.random.fork_rng(devices=[]):
            base = kind.from_pretrained(
                name if adapter is None else adapter.base,
                config=config,
                ignore_mismatched_sizes=adapter is not None,
                **options,
                **(args.source if adapter is None else args.source | adapter.base_source),
            )
            return weights_fingerprint(base if adapter is None else put_on(adapter, base))
