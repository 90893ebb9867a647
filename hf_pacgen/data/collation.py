"""Examples of a dataset as batches: which columns a model takes, what is padded, and what is not."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from transformers import default_data_collator

from hf_pacgen.data.contents import LABEL_NAMES
from hf_pacgen.model.state import base_model, random_state_kept

__all__ = ["PADDING", "AsTheTrainer", "collate", "has_transform", "model_columns", "model_inputs"]

PADDING = {
    "labels": -100,
    "label_ids": -100,
    "attention_mask": 0,
    "decoder_attention_mask": 0,
    "token_type_ids": 0,
    "position_ids": 0,
    "bbox": 0,
}
"""What a ragged column is filled up with, where that is not the padding token."""


def collate(rows: list[Any], model: nn.Module) -> Any:
    """Stack the columns of examples; pad ragged integer columns as the model expects.

    Raises:
        ValueError: a column of other numbers is ragged; the message names it, its shapes, and what to do.
    """
    if not isinstance(rows[0], Mapping):
        return torch.utils.data.default_collate(rows)
    rows = [_taken(row, model) for row in rows]
    # boxes and masks of an image stay with it: one entry of a list for each example, as models for detection take them
    nested = {key: [row.pop(key) for row in rows] for key, value in list(rows[0].items()) if isinstance(value, Mapping)}
    shapes = {key: [_shape(row.get(key)) for row in rows] for key in rows[0]}
    ragged = [k for k, found in shapes.items() if len(set(found)) > 1 or any(_is_ragged(row.get(k)) for row in rows)]
    for key in ragged:
        if not _pads(key, [row.get(key) for row in rows], shapes[key]):
            raise _ragged(key, shapes[key], model)
    if "input_ids" in ragged and "attention_mask" not in rows[0] and "attention_mask" in model_inputs(model):
        # which tokens are padding: no other column tells
        for row in rows:
            row["attention_mask"] = _ones(row["input_ids"])
        shapes["attention_mask"] = [_shape(row["attention_mask"]) for row in rows]
        ragged.append("attention_mask")
    for key in ragged:
        largest = [max(sizes) for sizes in zip(*(s for s in shapes[key] if s is not None), strict=True)]
        fill = PADDING.get(key, -100 if "label" in key else _padding_token(model))
        for row in rows:
            row[key] = _padded(row[key], largest, fill)
    try:
        lists = {key: [{k: torch.as_tensor(v) for k, v in one.items()} for one in ones] for key, ones in nested.items()}
        return {**default_data_collator(rows, return_tensors="pt"), **lists}
    except (ValueError, TypeError, RuntimeError) as error:
        odd = {key: _in_words(value) for key, value in rows[0].items()}
        raise ValueError(
            f"The examples cannot be stacked into a batch ({error}): expected columns of numbers; got {odd}. "
            "Pass the collate_fn that you train with."
        ) from error


MISSES = (LookupError, ValueError, TypeError, AttributeError, RuntimeError)
"""What a collator may raise that misses a column."""


logger = logging.getLogger(__name__)
DROPPED = (
    "collate_fn asks for %s, which is no input of the model: the Trainer drops it before it collates "
    "(remove_unused_columns), and so it is dropped here. If you train with remove_unused_columns=False, pass a "
    "DataLoader with this collate_fn, whose rows stay whole."
)


class AsTheTrainer:
    """A collator of one's own, which gets of each row what the Trainer would give it: the inputs of the model.

    The Trainer drops all other columns (``remove_unused_columns``) before it collates.  A collator that needs them was
    used without that: it fails on what is left, and then gets whole rows.
    """

    def __init__(self, collate_fn: Callable[[list[Any]], Any], model: nn.Module) -> None:
        self.collate_fn, self.model = collate_fn, model
        self._takes_all: bool | None = None  # found out on the first rows

    def __call__(self, rows: list[Any]) -> Any:
        """The batch."""
        if self._takes_all is None:
            self._takes_all = not self._are_cut(rows)
        if self._takes_all:
            return self.collate_fn(rows)
        return self.collate_fn([_inputs_of(row, self.model) for row in rows])

    def _are_cut(self, rows: list[Any]) -> bool:
        """Whether something is to be dropped, and the collator does without it."""
        if not all(isinstance(row, Mapping) for row in rows):
            return False
        cut = [_inputs_of(row, self.model) for row in rows]
        kept = [len(few) < len(row) and not set(few) <= set(LABEL_NAMES) for few, row in zip(cut, rows, strict=True)]
        if not all(kept):
            return False
        watched = [_Watched(few, row) for few, row in zip(cut, rows, strict=True)]
        with random_state_kept():  # a try must not change what a collator draws
            try:
                self.collate_fn(watched)
            except MISSES:
                return False
        if asked := sorted({str(key) for row in watched for key in row.asked}):
            logger.warning(DROPPED, ", ".join(map(repr, asked)))
        return True


class _Watched(dict[str, Any]):
    """A row that knows which of the dropped columns it was asked for."""

    def __init__(self, kept: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
        super().__init__(kept)
        self.dropped, self.asked = set(whole) - set(kept), set[str]()

    def _see(self, key: Any) -> None:
        if key in self.dropped:
            self.asked.add(key)

    def __contains__(self, key: Any) -> bool:
        self._see(key)
        return super().__contains__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self._see(key)
        return super().get(key, default)

    def pop(self, key: Any, *default: Any) -> Any:
        self._see(key)
        return super().pop(key, *default)


def _inputs_of(row: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    names = model_inputs(model)
    return {key: value for key, value in row.items() if key in names or key in LABEL_NAMES}


def model_inputs(model: nn.Module) -> set[str]:
    """The names of a model's inputs."""
    parameters = inspect.signature(base_model(model).forward).parameters
    return {name for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}


def has_transform(data: Any) -> bool:
    """Whether rows of a table are made when they are read, so that its columns are not those of the rows."""
    kind = getattr(data, "format", None)
    return isinstance(kind, Mapping) and kind.get("type") == "custom"


def model_columns(data: Any, model: nn.Module) -> Any:
    """Drop the columns of a table that are no input of the model, as Trainer does.

    Raises:
        ValueError: none is one.
    """
    names = model_inputs(model)
    columns = list(data[0]) if has_transform(data) and len(data) else list(data.column_names or [])
    inputs = [column for column in columns if column in names and column not in LABEL_NAMES]
    if columns and not inputs:
        raise ValueError(
            f"None of the dataset's columns {columns} is an input of {type(base_model(model)).__name__}, which takes "
            f"{sorted(names)}. Tokenize or process the dataset first, or pass collate_fn."
        )
    if has_transform(data):  # which needs the columns that the model does not; those of its rows are dropped later
        return data
    keep = [column for column in columns if column in names or column in LABEL_NAMES]
    return data.select_columns(keep) if columns and len(keep) < len(columns) else data


def _taken(row: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """What of an example the model takes; all of it where the names tell nothing."""
    names = model_inputs(model)
    kept = {key: value for key, value in row.items() if key in names or key in LABEL_NAMES}
    anything = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(base_model(model).forward).parameters.values())
    if anything and not any(key not in LABEL_NAMES for key in kept):
        return dict(row)
    return kept or dict(row)


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor, an array or nested lists, which may be ragged themselves; None for other values."""
    if isinstance(value, (Tensor, numpy.ndarray)):
        return tuple(value.shape)
    if isinstance(value, (bool, int, float, numpy.number)):
        return ()
    if not isinstance(value, (list, tuple)):
        return None
    if all(type(item) in (int, float, bool) for item in value):
        return (len(value),)
    inner = [_shape(item) for item in value]
    if any(shape is None for shape in inner) or len({len(shape) for shape in inner if shape is not None}) > 1:
        return None
    known = [shape for shape in inner if shape is not None]
    return (len(value), *(max(sizes) for sizes in zip(*known, strict=True)))


def _is_ragged(value: Any) -> bool:
    """Whether lists inside one example have different lengths, such as answers to choose from."""
    if not isinstance(value, (list, tuple)) or not any(isinstance(item, (list, tuple)) for item in value):
        return False
    return len({_shape(item) for item in value}) > 1 or any(map(_is_ragged, value))


def _ones(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and any(isinstance(item, (list, tuple, Tensor)) for item in value):
        return [_ones(item) for item in value]
    return numpy.ones(_shape(value) or (), dtype=numpy.int64)


def _pads(key: str, values: list[Any], shapes: list[tuple[int, ...] | None]) -> bool:
    """Whether a ragged column can be padded: integers of as many dimensions each."""
    if any(shape is None for shape in shapes) or len({len(shape) for shape in shapes if shape is not None}) > 1:
        return False
    # the patches and grids of images are integers too in some processors, and lie one after another in a batch
    return all(map(_is_integer, values)) and "grid" not in key


def _is_integer(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point()
    if isinstance(value, numpy.ndarray):
        return value.dtype.kind in "iub"
    if isinstance(value, (list, tuple)):
        return all(map(_is_integer, value))
    return isinstance(value, (int, numpy.integer))


def _padded(value: Any, shape: list[int], fill: int) -> Any:
    out = numpy.full(shape, fill, dtype=numpy.int64)

    def put(target: Any, part: Any) -> None:
        if isinstance(part, (list, tuple)) and target.ndim > 1:
            for i, item in enumerate(part):
                put(target[i], item)
        else:
            array = numpy.asarray(part)
            target[tuple(slice(n) for n in array.shape)] = array

    put(out, value)
    return torch.from_numpy(out)


def _padding_token(model: nn.Module) -> int:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(config, "pad_token_id", None), getattr(text, "pad_token_id", None)
    return next((token for token in found if isinstance(token, int) and token >= 0), 0)


def _ragged(key: str, shapes: list[tuple[int, ...] | None], model: nn.Module) -> ValueError:
    """The error of a column that has no padding which all models understand."""
    different = ", ".join(dict.fromkeys(str(list(s)) if s is not None else "no numbers" for s in shapes))
    if key in ("input_values", "input_features"):
        remedy = "a collator that calls your processor's pad(), as DataCollatorCTCWithPadding in the recipes for speech"
    elif "pixel" in key or "grid" in key or "image" in key:
        remedy = (
            "the collator of your recipe, which calls your processor on a list of examples (it resizes or pads images, "
            "or lays their patches one after another)"
        )
    else:
        remedy = "the collator that you train with"
    return ValueError(
        f"The column {key!r} has examples of different shapes ({different}), which {type(base_model(model)).__name__} "
        f"does not say how to pad: expected equal shapes, or integers. Pass collate_fn: {remedy}."
    )


def _in_words(value: Any) -> str:
    shape = _shape(value)
    return type(value).__name__ if shape is None else f"{type(value).__name__} {list(shape)}"
