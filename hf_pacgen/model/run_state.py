"""What a Trainer leaves of its run: the ``trainer_state.json`` in its folder and in those of its checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["CHECKPOINT", "STATE", "read_state", "run_of", "state_files"]

STATE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
"""The folder of a checkpoint, with its step."""


def run_of(folder: Path) -> Path:
    """The folder of the training run that a checkpoint belongs to; any other folder itself."""
    return folder.parent if CHECKPOINT.fullmatch(folder.name) else folder


def state_files(folder: Path) -> Iterator[Path]:
    """The states that lie in a folder and in the checkpoints below it."""
    yield from (file for file in (folder / STATE, *sorted(folder.glob(f"checkpoint-*/{STATE}"))) if file.is_file())


def read_state(file: Path) -> dict[str, Any]:
    """The content of a state.

    Raises:
        OSError, ValueError: the file cannot be read, is no JSON, or holds no state.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {type(content).__name__}")
    return content
