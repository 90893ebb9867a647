"""How the commands that measure a model run: batches, device, processes, and the file of the result."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from hf_pacgen.command_line.inputs.models import choose_device
from hf_pacgen.config.settings import Config, check_number, option
from hf_pacgen.errors import InputError

__all__ = ["RunArguments", "check_output", "choose_place", "write"]


@dataclass(frozen=True, kw_only=True)
class RunArguments(Config):
    """How the command runs, and where the result goes."""

    _argument_group_name = "run"

    batch_size: int = option(8, "Number of examples in a batch.")
    output: str | None = option(None, "JSON file to write the result to; its folder must exist.")
    top_modules: int = option(8, "Number of modules to list, those with the largest share of K(η) first; 0 lists none.")
    progress: bool = option(True, "Show a progress bar.")

    def __post_init__(self) -> None:
        check_number(self, "batch_size", minimum=1, integer=True)
        check_number(self, "top_modules", minimum=0, integer=True)


def choose_place(device: str) -> tuple[torch.device, Accelerator | None]:
    """The device of this process, and the accelerator of a run that torchrun or accelerate started in several.

    Raises:
        InputError: there is no such device.
    """
    chosen = choose_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return chosen, None
    accelerator = Accelerator(cpu=chosen.type == "cpu")
    return accelerator.device, accelerator


def check_output(output: str | None) -> None:
    """Raise before the work begins if the result could not be written."""
    if output is None:
        return
    path = Path(output)
    if not path.parent.is_dir():
        raise InputError(f"--output {output!r}: the folder {str(path.parent)!r} does not exist. Make it first.")
    if path.is_dir():
        raise InputError(
            f"--output {output!r} is a folder: expected the name of a JSON file, such as {path / 'result.json'}."
        )
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"--output {output!r}: the folder {str(path.parent)!r} cannot be written to. Choose another.")


def write(path: str, text: str) -> None:
    """Write a file.

    Raises:
        InputError: it cannot be written.
    """
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path!r} could not be written: {error}.") from error
