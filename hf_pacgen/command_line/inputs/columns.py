"""Which columns hold the text, the image and the label, if the user does not say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets

from hf_pacgen.command_line.inputs.models import Task, is_headless, tasks_of, trained_task
from hf_pacgen.command_line.inputs.tables import DataArguments
from hf_pacgen.errors import InputError

__all__ = ["Columns", "choose_columns", "choose_task"]

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


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns in use; None where the task has none."""

    text: str | None = None
    text_pair: str | None = None
    image: str | None = None
    label: str | None = None


def choose_task(config: Any, table: datasets.Dataset, args: DataArguments, asked: Task | None) -> Task:
    """The task: as asked, by the checkpoint's head, or by what the data holds for an encoder without one.

    Raises:
        InputError: the model has no such head, or the task cannot be told.
    """
    possible, trained = tasks_of(config), trained_task(config)
    if asked is not None:
        if possible and asked not in possible and asked is not trained:
            raise InputError(
                f"--task {asked.value} does not fit a model of type {config.model_type!r}, which can do "
                f"{', '.join(task.value for task in possible)}."
            )
        return asked
    if trained is not None:
        return trained
    if not is_headless(config):
        possible = []  # it has a head for something else
    images = [name for name in table.column_names if _is_image(table.features[name])]
    if Task.IMAGE_CLASSIFICATION in possible and (args.image_column or images):
        return Task.IMAGE_CLASSIFICATION
    if Task.SEQUENCE_CLASSIFICATION in possible and _find_label(table, args, {args.text_column}) is not None:
        return Task.SEQUENCE_CLASSIFICATION
    architectures = ", ".join(getattr(config, "architectures", None) or ["no architecture"])
    known = ", ".join(task.value for task in Task)
    raise InputError(
        f"Cannot tell the task of the model from its config.json ({architectures}): expected a model for one of "
        f"{known}. Give it with --task; for other tasks call hf_pacgen.pacgen() from Python."
    )


def choose_columns(table: datasets.Dataset, args: DataArguments, task: Task) -> Columns:
    """The columns for a task, as given or inferred.

    Raises:
        InputError: a column that was given is not there or holds something else, or none can be inferred.
    """
    if task is Task.IMAGE_CLASSIFICATION:
        image = _image_column(table, args.image_column)
        return Columns(image=image, label=_label_column(table, args, {image}))
    if task is Task.CAUSAL_LM:
        return Columns(text=_text_column(table, args.text_column, taken=set()))
    text, pair = args.text_column, args.text_pair_column
    if text is None and pair is None:
        lower = {name.lower(): name for name in table.column_names if _is_text(table.features[name])}
        for first, second in PAIR_NAMES:
            if first in lower and second in lower:
                text, pair = lower[first], lower[second]
                break
    taken = {pair, args.label_column}
    text = _text_column(table, text, taken=taken)
    if pair is not None:
        _check(table, pair, "--text-pair-column", _is_text, "text")
    return Columns(text=text, text_pair=pair, label=_label_column(table, args, {text, pair}))


def list_columns(table: datasets.Dataset) -> str:
    """The columns with what they hold, for error messages."""
    return ", ".join(f"{name!r} ({_describe(table.features[name])})" for name in table.column_names)


def _text_column(table: datasets.Dataset, given: str | None, taken: set[str | None]) -> str:
    if given is not None:
        return _check(table, given, "--text-column", _is_text, "text")
    texts = [name for name in table.column_names if _is_text(table.features[name]) and name not in taken]
    named = [name for wanted in TEXT_NAMES for name in texts if name.lower() == wanted]
    free = [name for name in texts if name.lower() not in LABEL_NAMES + NO_LABELS]
    if named or len(free) == 1:
        return (named or free)[0]
    raise InputError(
        f"Cannot tell which column holds the text: the data has {list_columns(table)}. Name it with --text-column."
    )


def _image_column(table: datasets.Dataset, given: str | None) -> str:
    if given is not None:
        return _check(table, given, "--image-column", _may_be_image, "images")
    images = [name for name in table.column_names if _is_image(table.features[name])]
    named = [
        name
        for wanted in IMAGE_NAMES
        for name in table.column_names
        if name.lower() == wanted and _may_be_image(table.features[name])
    ]
    both = [name for name in named if name in images]
    if both or named or len(images) == 1:
        return (both or named or images)[0]
    raise InputError(
        f"Cannot tell which column holds the image: the data has {list_columns(table)}. Name it with --image-column."
    )


def _label_column(table: datasets.Dataset, args: DataArguments, taken: set[str | None]) -> str:
    found = _find_label(table, args, taken)
    if found is None:
        raise InputError(
            f"Cannot tell which column holds the label: the data has {list_columns(table)}. "
            "Name it with --label-column."
        )
    return found


def _find_label(table: datasets.Dataset, args: DataArguments, taken: set[str | None]) -> str | None:
    if args.label_column is not None:
        return _check(table, args.label_column, "--label-column", _may_be_label, "labels (numbers or names)")
    free = [name for name in table.column_names if name not in taken and _may_be_label(table.features[name])]
    named = [name for wanted in LABEL_NAMES for name in free if name.lower() == wanted]
    classes = [name for name in free if isinstance(table.features[name], datasets.ClassLabel)]
    numbers = [name for name in free if not _is_text(table.features[name]) and name.lower() not in NO_LABELS]
    for candidates in (named[:1], classes, numbers):
        if len(candidates) == 1:
            return candidates[0]
    return None


def _check(table: datasets.Dataset, name: str, flag: str, fits: Callable[[Any], bool], what: str) -> str:
    if name not in table.column_names:
        raise InputError(f"The data has no column {name!r}; it has {list_columns(table)}. Correct {flag}.")
    if not fits(table.features[name]):
        raise InputError(
            f"The column {name!r} holds {_describe(table.features[name])}, expected {what}. Correct {flag}; "
            f"the data has {list_columns(table)}."
        )
    return name


def _is_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _is_image(feature: Any) -> bool:
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _may_be_image(feature: Any) -> bool:
    return _is_image(feature) or _is_text(feature)  # text: the path of an image file


def _may_be_label(feature: Any) -> bool:
    if isinstance(feature, datasets.ClassLabel):
        return True
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(
        ("int", "uint", "bool", "float", "string", "large_string", "null")
    )


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
