"""Rows of every task, as the tests of the command line read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy
from PIL import Image

TAGS: dict[str, Any] = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}, "label2id": {"O": 0, "B-PER": 1, "I-PER": 2}}
NAMED: dict[str, Any] = {"id2label": {0: "joy", 1: "anger", 2: "fear"}, "label2id": {"joy": 0, "anger": 1, "fear": 2}}
WORDS: list[dict[str, Any]] = [
    {"tokens": ["good", "Anna", "Xu", "."], "ner_tags": ["O", "B-PER", "I-PER", "O"]},
    {"tokens": ["Bob", "was", "bad"], "ner_tags": ["B-PER", "O", "O"]},
]
SQUAD: list[dict[str, Any]] = [
    {"question": "what color ?", "context": "the sky is blue .", "answers": {"text": ["blue"], "answer_start": [11]}},
    {
        "question": " what was good ?",
        "context": "bad " * 5 + "the movie was good . " + "bad " * 60,
        "answers": {"text": ["the movie"], "answer_start": [20]},
    },
    {"question": "what ?", "context": "good", "answers": {"text": [], "answer_start": []}},
]
SWAG: list[dict[str, Any]] = [
    {"sent1": "the movie", "sent2": "was", "ending0": "good", "ending1": "blue sky", "label": 0},
    {"sent1": "the sky", "sent2": "is", "ending0": "bad", "ending1": "blue", "label": 1},
]

DRAW = numpy.random.default_rng(0)
PICTURES = [Image.fromarray(DRAW.integers(0, 255, (20, 14, 3), dtype=numpy.uint8)) for _ in range(3)]
MASKS = [Image.fromarray(DRAW.choice([0, 1, 2, 255], (20, 14)).astype(numpy.uint8)) for _ in range(3)]
OBJECTS: list[dict[str, Any]] = [
    {"bbox": [[1, 2, 5, 6], [3, 3, 8, 9]], "category": [0, 1]},
    {"bbox": [[1, 2, 5, 6]], "category": [1]},
    {"bbox": [[2, 1, 9, 8]], "category": [0]},
]
BOXES: dict[str, Any] = {
    "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
    "category": datasets.List(datasets.ClassLabel(names=["cat", "dog"])),
}


def write_pictures(
    path: Path, masks: list[Any] | None = None, objects: list[Any] | None = None, kind: Any = None
) -> Path:
    columns: dict[str, Any] = {"image": PICTURES}
    features: dict[str, Any] = {"image": datasets.Image()}
    if masks is not None:
        columns["annotation"], features["annotation"] = masks, datasets.Image()
    if objects is not None:
        columns["objects"], features["objects"] = objects, kind or BOXES
    datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(path)
    return path
