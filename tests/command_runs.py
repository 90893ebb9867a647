"""What the tests of the command line share: data in files, and how a refusal looks."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy
from PIL import Image

ROWS = [("good movie", 1), ("awful food was bad", 0), ("very fine", 1), ("not good", 0), ("a bad movie", 0)]
QUICK = ["--no-progress", "--lipschitz-directions", "0"]

Run = Callable[..., tuple[int, str, str]]


def write_csv(path: Path, rows: list[Any] = ROWS, columns: tuple[str, ...] = ("text", "label")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def write_images(path: Path, count: int = 6, mode: str = "L") -> Path:
    shape = (12, 12) if mode == "L" else (12, 12, 3)
    draw = numpy.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 255, shape, dtype=numpy.uint8)) for _ in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    datasets.Dataset.from_dict({"image": pictures, "label": [0, 9, 3] * (count // 3)}, features).to_parquet(path)
    return path


def refused(run: Run, message: str, *words: object) -> None:
    """The command leaves with code 2 and says one line that matches."""
    code, out, err = run(*words)
    assert code == 2 and not out
    assert err.startswith("hf-pacgen: error: ") and err.count("\n") == 1
    assert re.search(message, err), err
