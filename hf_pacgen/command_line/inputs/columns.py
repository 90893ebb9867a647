"""Which columns hold the text, the image and the label, if the user does not say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.errors import InputError

__all__ = ["Columns", "has_images", "has_label", "image_and_label", "text_alone", "texts_and_label"]

TEXT_NAMES = ("text", "sentence", "content", "review", "tweet", "document", "question", "utterance", "prompt", "title")
PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
LABEL_NAMES = ("label", "labels", "target", "class", "category", "sentiment", "intent", "fine_label", "y")
IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixel_values")
NO_LABELS = ("id", "idx", "index", "row", "uid", "guid")


NUMBERS_OR_NAMES = ("int", "uint", "bool", "float", "string", "large_string", "null")
"""Beginnings of the types that a label may have."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns in use; None where the task has none."""

    text: str | None = None
    text_pair: str | None = None
    image: str | None = None
    label: str | None = None


def image_and_label(table: datasets.Dataset, args: DataArguments) -> Columns:
    """The columns of image classification."""
    image = _image_column(table, args.image_column)
    return Columns(image=image, label=_label_column(table, args, {image}))


def text_alone(table: datasets.Dataset, args: DataArguments) -> Columns:
    """The column of a language model."""
    return Columns(text=_text_column(table, args.text_column, taken=set()))


def texts_and_label(table: datasets.Dataset, args: DataArguments) -> Columns:
    """The columns of sequence classification: a text or a pair of texts, and the label."""
    text, pair = args.text_column, args.text_pair_column
    if text is None and pair is None:
        lower = {name.lower(): name for name in table.column_names if _is_text(table.features[name])}
        pairs = ((lower[first], lower[second]) for first, second in PAIR_NAMES if {first, second} <= set(lower))
        text, pair = next(pairs, (None, None))
    text = _text_column(table, text, taken={pair, args.label_column})
    if pair is not None:
        _check(table, pair, "--text-pair-column", _is_text, "text")
    return Columns(text=text, text_pair=pair, label=_label_column(table, args, {text, pair}))


def has_images(table: datasets.Dataset, args: DataArguments) -> bool:
    """Whether there is a column of images, or one was named."""
    return bool(args.image_column) or any(_is_image(feature) for feature in table.features.values())


def has_label(table: datasets.Dataset, args: DataArguments) -> bool:
    """Whether one column must be the label, beside the text."""
    return _find_label(table, args, {args.text_column}) is not None


def _text_column(table: datasets.Dataset, given: str | None, taken: set[str | None]) -> str:
    if given is not None:
        return _check(table, given, "--text-column", _is_text, "text")
    texts = [name for name in table.column_names if _is_text(table.features[name]) and name not in taken]
    free = [name for name in texts if name.lower() not in LABEL_NAMES + NO_LABELS]
    named = _well_known(texts, TEXT_NAMES)
    return _first(named or (free if len(free) == 1 else []), table, "text")


def _image_column(table: datasets.Dataset, given: str | None) -> str:
    if given is not None:
        return _check(table, given, "--image-column", _may_be_image, "images")
    images = [name for name in table.column_names if _is_image(table.features[name])]
    named = _well_known([name for name in table.column_names if _may_be_image(table.features[name])], IMAGE_NAMES)
    # a column of that name that holds images, else one with the names of files, else the only images there are
    found = [name for name in named if name in images] or named or (images if len(images) == 1 else [])
    return _first(found, table, "image")


def _label_column(table: datasets.Dataset, args: DataArguments, taken: set[str | None]) -> str:
    found = _find_label(table, args, taken)
    return _first([] if found is None else [found], table, "label")


def _find_label(table: datasets.Dataset, args: DataArguments, taken: set[str | None]) -> str | None:
    if args.label_column is not None:
        return _check(table, args.label_column, "--label-column", _may_be_label, "labels (numbers or names)")
    free = [name for name in table.column_names if name not in taken and _may_be_label(table.features[name])]
    classes = [name for name in free if isinstance(table.features[name], datasets.ClassLabel)]
    numbers = [name for name in free if not _is_text(table.features[name]) and name.lower() not in NO_LABELS]
    for candidates in (_well_known(free, LABEL_NAMES)[:1], classes, numbers):
        if len(candidates) == 1:
            return candidates[0]
    return None


def _well_known(names: list[str], known: Sequence[str]) -> list[str]:
    """Those of the names that are well known, best first."""
    return [name for wanted in known for name in names if name.lower() == wanted]


def _first(found: list[str], table: datasets.Dataset, what: str) -> str:
    if not found:
        raise InputError(
            f"Cannot tell which column holds the {what}: the data has {_list_columns(table)}. "
            f"Name it with --{what}-column."
        )
    return found[0]


def _check(table: datasets.Dataset, name: str, flag: str, fits: Callable[[Any], bool], what: str) -> str:
    if name not in table.column_names:
        raise InputError(f"The data has no column {name!r}; it has {_list_columns(table)}. Correct {flag}.")
    if not fits(table.features[name]):
        raise InputError(
            f"The column {name!r} holds {_describe(table.features[name])}, expected {what}. Correct {flag}; "
            f"the data has {_list_columns(table)}."
        )
    return name


def _list_columns(table: datasets.Dataset) -> str:
    return ", ".join(f"{name!r} ({_describe(table.features[name])})" for name in table.column_names)


def _is_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _is_image(feature: Any) -> bool:
    # parquet files that other libraries wrote hold the bytes and the name of each file
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _may_be_image(feature: Any) -> bool:
    return _is_image(feature) or _is_text(feature)  # text: the path of an image file


def _may_be_label(feature: Any) -> bool:
    is_plain = isinstance(feature, datasets.Value) and feature.dtype.startswith(NUMBERS_OR_NAMES)
    return is_plain or isinstance(feature, datasets.ClassLabel)


def _describe(feature: Any) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return f"{feature.num_classes} classes"
    if isinstance(feature, datasets.Value):
        return "text" if _is_text(feature) else feature.dtype
    if _is_image(feature):
        return "images"
    if isinstance(feature, (list, datasets.List, datasets.LargeList)):
        return "lists"
    return type(feature).__name__.lower()
