"""What a run has recorded of how its texts were made: the ``training_args.bin`` of TRL's SFTTrainer."""

from __future__ import annotations

import dataclasses
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets

from hf_pacgen.command_line.inputs.columns import Columns, feature_of
from hf_pacgen.command_line.inputs.columns import is_chat as is_chat_column
from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.command_line.inputs.examples import UNLIMITED
from hf_pacgen.command_line.inputs.runs import step_of

FILE = "training_args.bin"
MOST = 10**6  # bytes; the settings of a run are some thousands
OF_SFT = "dataset_text_field"  # a setting that only the SFTTrainer has
UNREADABLE: tuple[type[Exception], ...] = (OSError, zipfile.BadZipFile, pickle.UnpicklingError, EOFError)
UNREADABLE += (ValueError, TypeError, AttributeError, LookupError)


class _Inert:
    """Stands for an object of any class: it keeps what was stored of it, and does nothing."""

    def __new__(cls, *args: Any, **named: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **named: Any) -> None:
        self.state: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, Mapping) else {}


class _Reader(pickle.Unpickler):
    """Reads plain values out of a pickle, and runs nothing that it names: it may be of anybody."""

    def find_class(self, module: str, name: str) -> Any:
        return _Inert

    def persistent_load(self, key: Any) -> None:
        return None


def recorded(name: str) -> dict[str, Any]:
    """The settings of the SFTTrainer that has made a model, of its folder or its run's; none where there are none."""
    folder = Path(name)
    for place in (folder, *([folder.parent] if step_of(folder) >= 0 else [])):
        settings = _settings(place / FILE)
        if OF_SFT in settings:
            return settings
    return {}


def _settings(file: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(file) as archive:
            (inner,) = (info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
            if inner.file_size > MOST:
                return {}
            found = _Reader(io.BytesIO(archive.read(inner))).load()
    except UNREADABLE:  # of another program, or of another release of torch: it says nothing
        return {}
    return dict(found.state) if isinstance(found, _Inert) else {}


def with_text_column(args: DataArguments, settings: Mapping[str, Any], table: datasets.Dataset) -> DataArguments:
    """The column of texts that the run was told, where the data has it and no other was named."""
    field = settings.get(OF_SFT)
    is_free = args.text_column is None and args.label_column is None and args.template is None
    if not is_free or field in (None, "text") or field not in table.column_names:
        return args
    return dataclasses.replace(args, text_column=field)


def as_trained(
    args: DataArguments, settings: Mapping[str, Any], columns: Columns, table: datasets.Dataset, ending: str | None
) -> tuple[DataArguments, tuple[str, ...]]:
    """The settings of the data, where none were given those of the run; and a sentence on what was taken from it.

    Args:
        ending: the end-of-sequence token of the run's tokenizer.
    """
    if not settings:
        return args, ()
    is_chat = columns.template is None and is_chat_column(feature_of(table, str(columns.text)))
    changes: dict[str, Any] = {}
    said = []
    if args.eos == "auto" and ending is not None and not is_chat:
        changes["eos"] = "add"
        said.append(f"texts end with {ending}")
    if settings.get("assistant_only_loss") is True and is_chat and not args.assistant_only:
        changes["assistant_only"] = True
        said.append("the loss is on what the assistant says")
    if settings.get("completion_only_loss") is False and columns.label is not None and args.completion_only:
        changes["completion_only"] = False
        said.append("the loss is on the prompt too")
    length = length_of(settings)
    if args.max_length is None and length is not None:
        said.append(f"rows are cut after {length:,} tokens" if length < UNLIMITED else "rows are not cut")
    notes = [f"Taken from the settings of the run ({FILE}): {', '.join(said)}."] if said else []
    if settings.get("packing"):
        notes.append("The run packed several texts into a row; here each is a row of its own, cut on its own.")
    return dataclasses.replace(args, **changes), tuple(notes)


def length_of(settings: Mapping[str, Any]) -> int | None:
    """The most tokens of a row of the run; None where it recorded none."""
    found = settings.get("max_length", 0)
    if found is None:  # rows were not cut
        return UNLIMITED
    return found if isinstance(found, int) and found > 0 else None
