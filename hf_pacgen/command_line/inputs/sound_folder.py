"""Folders of sounds as tables: ``datasets`` reads them only where torchcodec is installed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets

from hf_pacgen.errors import InputError, few

SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aiff", ".aif", ".au")
METADATA = ("metadata.csv", "metadata.jsonl")
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test"}
SPLITS |= {"validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}


def is_sound_folder(folder: Path) -> bool:
    """Whether a folder holds sound files, and no tables but what describes them."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    sounds = [path for path in files if path.suffix.lower() in SOUNDS]
    return bool(sounds) and all(path in set(sounds) or path.name in METADATA for path in files)


def read_sound_folder(folder: Path) -> datasets.DatasetDict:
    """The sounds of every split with the names of their folders as labels, or with the columns of their metadata.

    A file ``metadata.csv`` or ``metadata.jsonl`` has a column ``file_name`` beside its others, as for ``audiofolder``.
    """
    found = [child for child in sorted(folder.iterdir()) if child.is_dir() and child.name.lower() in SPLITS]
    places = {SPLITS[child.name.lower()]: child for child in found} or {"train": folder}
    return datasets.DatasetDict({split: _table(place) for split, place in places.items()})


def _table(folder: Path) -> datasets.Dataset:
    described = [folder / name for name in METADATA if (folder / name).is_file()]
    if described:
        rows = _metadata(described[0])
        columns = [name for name in rows[0] if name != "file_name"]
        audio = {"audio": [str(folder / row["file_name"]) for row in rows]}
        return datasets.Dataset.from_dict(audio | {name: [row.get(name) for row in rows] for name in columns})
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUNDS)
    names = sorted({path.parent.name for path in files if path.parent != folder})
    features: dict[str, Any] = {"audio": datasets.Value("string")}
    paths: dict[str, list[Any]] = {"audio": [str(path) for path in files]}
    if names and all(path.parent != folder for path in files):
        features["label"] = datasets.ClassLabel(names=names)
        paths["label"] = [names.index(path.parent.name) for path in files]
    return datasets.Dataset.from_dict(paths, datasets.Features(features))


def _metadata(file: Path) -> list[dict[str, Any]]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".csv":
        rows: list[dict[str, Any]] = list(csv.DictReader(text.splitlines()))
    else:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not rows or any(not row.get("file_name") for row in rows):
        has = few(rows[0], 6) if rows else "no row"
        raise InputError(
            f"The file {str(file)!r} has {has}: expected file_name in each row, the sound that it describes."
        )
    return rows
