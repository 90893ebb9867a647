"""One name for the same rows, another for other ones."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
from PIL import Image

from hf_pacgen.command_line.inputs.fingerprint import data_fingerprint


def of(table: Any) -> str | None:
    return data_fingerprint(SimpleNamespace(table=table))


def test_it_is_of_the_contents(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": i % 2} for i in range(2500)]
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(tmp_path / "a.parquet")
    assert of(table) == of(datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"))) != None  # noqa: E711
    assert of(table.select(range(5, 25))) == of(datasets.Dataset.from_list(rows[5:25]))
    changed = [*rows[:-1], {"text": "row 2499", "label": 0}]
    others = {of(table), of(datasets.Dataset.from_list(changed)), of(table.shuffle(seed=0)), of(table.select([0, 1]))}
    assert len({*others, of(table.rename_column("label", "class"))}) == 5
    assert data_fingerprint(SimpleNamespace(rows=SimpleNamespace(table=table))) == of(table)
    assert of(iter(rows)) is None and data_fingerprint(object()) is None


def test_files_count_by_their_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (4, 4)).save(path)
    table = datasets.Dataset.from_dict({"image": [str(path)]}).cast_column("image", datasets.Image())
    before = of(table)
    assert of(table) == before
    os.utime(path, ns=(1, 1))
    assert of(table) != before
