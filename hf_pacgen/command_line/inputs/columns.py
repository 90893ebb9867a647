"""Which columns hold the text, the image and the label, if the user does not say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.errors import InputError

# names as data sets on the hub have them, the most telling first
TEXT_NAMES = ("text", "sentence", "content", "review", "tweet", "document", "question", "utterance", "prompt", "title")
PAIR_NAMES = [("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")]
PAIR_NAMES += [("question", "sentence"), ("question", "passage"), ("query", "passage")]
PAIR_NAMES += [("text1", "text2"), ("text_a", "text_b")]
LABEL_NAMES = ("label", "labels", "target", "class", "category", "sentiment", "intent", "fine_label", "y")
IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixel_values")
NO_LABELS = ("id", "idx", "index", "row", "uid", "guid")
# beginnings of the types that a label may have; a column of nulls is refused later, for its empty cells
NUMBERS_OR_NAMES = ("int", "uint", "bool", "float", "string", "large_string", "null")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns in use; None where the task has none."""

    text: str | None = None
    text_pair: str | None = None
    image: str | None = None
    label: str | None = None


def image_and_label(table: datasets.Dataset, args: DataArguments) -> Columns:
    """The columns of image classification."""
    images = _those(table, _is_image)
    named = _well_known(_those(table, _may_be_image), IMAGE_NAMES)
    # a column of that name that holds images, else one with the names of files, else the only images there are
    found = [name for name in named if name in images] or named or _only(images)
    image = _chosen(table, "image", args.image_column, found)
    return Columns(image=image, label=_label_column(table, args, {image}))


def text_alone(table: datasets.Dataset, args: DataArguments) -> Columns:
    """The column of a language model."""
    return Columns(text=_text_column(table, args.text_column, taken=set()))


def texts_and_label(table: datasets.Dataset, args: DataArguments) -> Columns:
    """The columns of sequence classification: a text or a pair of texts, and the label."""
    text, pair = args.text_column, args.text_pair_column
    if text is None and pair is None:
        # a pair that is well known comes before any single text: half of it would be another task
        lower = {name.lower(): name for name in _those(table, _is_text)}
        pairs = ((lower[first], lower[second]) for first, second in PAIR_NAMES if {first, second} <= set(lower))
        text, pair = next(pairs, (None, None))
    # the label may be text as well
    text = _text_column(table, text, taken={pair, args.label_column})
    if pair is not None:
        _check(table, "text-pair", pair)
    return Columns(text=text, text_pair=pair, label=_label_column(table, args, {text, pair}))


def has_images(table: datasets.Dataset, args: DataArguments) -> bool:
    """Whether there is a column of images, or one was named."""
    return bool(args.image_column) or bool(_those(table, _is_image))


def has_label(table: datasets.Dataset, args: DataArguments) -> bool:
    """Whether one column must be the label, beside the text."""
    return args.label_column is not None or bool(_labels(table, {args.text_column}))


def _text_column(table: datasets.Dataset, given: str | None, taken: set[str | None]) -> str:
    texts = [name for name in _those(table, _is_text) if name not in taken]
    free = [name for name in texts if name.lower() not in LABEL_NAMES + NO_LABELS]
    return _chosen(table, "text", given, _well_known(texts, TEXT_NAMES) or _only(free))


def _label_column(table: datasets.Dataset, args: DataArguments, taken: set[str | None]) -> str:
    return _chosen(table, "label", args.label_column, _labels(table, taken))


def _labels(table: datasets.Dataset, taken: set[str | None]) -> list[str]:
    free = [name for name in _those(table, _may_be_label) if name not in taken]
    classes = [name for name in free if isinstance(table.features[name], datasets.ClassLabel)]
    numbers = [name for name in free if not _is_text(table.features[name]) and name.lower() not in NO_LABELS]
    # two columns of classes are a doubt for a person to settle; that of numbers is asked last, since it may be a count
    return _well_known(free, LABEL_NAMES) or _only(classes) or _only(numbers)


def _those(table: datasets.Dataset, fits: Callable[[Any], bool]) -> list[str]:
    return [name for name in table.column_names if fits(table.features[name])]


def _well_known(names: list[str], known: Sequence[str]) -> list[str]:
    return [name for wanted in known for name in names if name.lower() == wanted]  # best first


def _only(names: list[str]) -> list[str]:
    return names if len(names) == 1 else []


def _chosen(table: datasets.Dataset, role: str, given: str | None, found: list[str]) -> str:
    if given is not None:
        return _check(table, role, given)
    if not found:
        raise InputError(
            f"Cannot tell which column holds the {role}: the data has {_listed(table)}. Name it with --{role}-column."
        )
    return found[0]


def _check(table: datasets.Dataset, role: str, name: str) -> str:
    if name not in table.column_names:
        raise InputError(f"The data has no column {name!r}; it has {_listed(table)}. Correct --{role}-column.")
    fits, what = _ROLES[role]
    if not fits(table.features[name]):
        raise InputError(
            f"The column {name!r} holds {_describe(table.features[name])}, expected {what}. Correct --{role}-column; "
            f"the data has {_listed(table)}."
        )
    return name


def _listed(table: datasets.Dataset) -> str:
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


_ROLES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "text": (_is_text, "text"),
    "text-pair": (_is_text, "text"),
    "image": (_may_be_image, "images"),
    "label": (_may_be_label, "labels (numbers or names)"),
}


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
