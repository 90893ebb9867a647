"""Labels as the model's head numbers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from hf_pacgen.errors import InputError, few

Numbered = tuple[dict[Any, int], tuple[str, ...]]  # class numbers by raw label, and what was assumed


@dataclass(frozen=True, kw_only=True)
class Labels:
    """How a raw label becomes the model's: a class number, or a real number for regression."""

    numbers: Mapping[Any, int] | None  # class number by raw label; None for regression
    num_labels: int  # outputs that a head for these labels has
    notes: tuple[str, ...] = ()  # what was assumed, in sentences

    def __call__(self, raw: Any) -> int | float:
        return float(raw) if self.numbers is None else self.numbers[raw]


def encode_labels(table: datasets.Dataset, column: str, config: Any, *, new_head: bool) -> Labels:
    """Match the labels of a column with the outputs of the model's head, or of a new head made for them."""
    check_complete(table, column, "a label")
    feature = table.features[column]
    if not new_head and config.num_labels == 1:  # transformers takes a single output for regression
        if isinstance(feature, datasets.ClassLabel) or "string" in feature.dtype:
            raise InputError(
                f"The model's head has 1 output, which is for regression, but the column {column!r} holds classes: "
                "expected numbers. Give the model that was trained on these labels."
            )
        return Labels(numbers=None, num_labels=1)
    values = sorted(table.unique(column))
    _check_classes(values, column)
    if isinstance(values[0], str) or isinstance(feature, datasets.ClassLabel):
        numbers, notes = _named(values, feature, column, config, new_head)
    else:
        numbers, notes = _numbered(values, new_head)
    if not new_head:
        notes += _check_outputs([numbers[value] for value in values], column, config.num_labels)
    elif len(numbers) < 2:
        single = f"holds one single label, {values[0]!r}: expected at least 2 classes"
        raise InputError(f"The column {column!r} {single}. Give the data the model is trained on.")
    return Labels(numbers=numbers, num_labels=len(numbers) if new_head else config.num_labels, notes=notes)


def check_complete(table: datasets.Dataset, column: str, what: str) -> None:
    """Raise if a column has empty cells."""
    # counted by arrow: the images of a column need not be decoded for it
    cells = table.with_format("arrow").select_columns([column])[:][column]
    if not cells.null_count:
        return
    first = cells.is_null().index(True).as_py()
    raise InputError(
        f"The column {column!r} has no value in {cells.null_count:,} of {len(table):,} rows (the first is row {first}, "
        f"counted from 0): expected {what} in each. Remove those rows."
    )


def _check_classes(values: list[Any], column: str) -> None:
    real = [value for value in values if isinstance(value, float) and not value.is_integer()]
    if real:
        raise InputError(
            f"The column {column!r} holds {real[0]!r}: expected class numbers or names. "
            "For regression, give a model whose head has 1 output."
        )
    if not isinstance(values[0], str) and values[0] < 0:
        hidden = "Hidden labels of a test split are often written as -1; score the split the model was trained on."
        raise InputError(f"The column {column!r} holds the label {values[0]}: expected class numbers from 0. {hidden}")


def _named(values: list[Any], feature: Any, column: str, config: Any, new_head: bool) -> Numbered:
    is_class = isinstance(feature, datasets.ClassLabel)
    names = list(feature.names) if is_class else values
    keys = list(range(len(names))) if is_class else names  # the rows of a ClassLabel hold numbers
    # case is no difference: "Positive" in the data is the model's "positive"
    own = {} if new_head else {str(k).casefold(): int(v) for k, v in (config.label2id or {}).items()}
    wanted = [str(name).casefold() for name in names]
    if set(wanted) <= set(own):
        return {key: own[name] for key, name in zip(keys, wanted, strict=True)}, ()
    numbers = {key: number for number, key in enumerate(keys)}
    if is_class:
        return numbers, ()
    in_order = f"numbered in alphabetical order: {_in_order(names)}."
    if new_head:
        return numbers, (f"Labels are {in_order}",)
    # transformers calls the classes LABEL_0, LABEL_1, ... where nobody has named them
    unnamed = all(name.startswith("label_") for name in own)
    if not unnamed and len(names) <= config.num_labels:
        odd = next(name for name in names if str(name).casefold() not in own)
        raise InputError(
            f"The label {odd!r} in the column {column!r} is none of the model's: expected one of "
            f"{', '.join(map(repr, config.label2id))}. Rename the labels, or give the model that was trained on them."
        )
    doubt = "If it was trained with another numbering, give numbers as labels."
    return numbers, (f"The model does not name its classes, so the labels were {in_order} {doubt}",)


def _numbered(values: list[Any], new_head: bool) -> Numbered:
    as_given = {value: int(value) for value in values}
    if not new_head or max(as_given.values()) == len(values) - 1:
        return as_given, ()
    # a head of 8 outputs for the labels 3 and 7 would have 6 that are never right
    order = f"Labels are numbered in ascending order for the new head: {_in_order(values)}."
    return {value: number for number, value in enumerate(values)}, (order,)


def _in_order(names: Sequence[Any]) -> str:
    return few([f"{name} = {number}" for number, name in enumerate(names)], 10)


def _check_outputs(used: list[int], column: str, outputs: int) -> tuple[str, ...]:
    if max(used) >= outputs:  # a GPU would stop with an error that names nothing
        count = f"{len(used)} classes" if len(used) > outputs else f"the label {max(used)}"
        raise InputError(
            f"The column {column!r} holds {count} (numbered up to {max(used)}), but the model's head has {outputs} "
            f"outputs (classes 0 to {outputs - 1}). Give the data this model was trained on, "
            "or the model trained on this data."
        )
    some = f"has {outputs} outputs, but only {len(used)} different labels occur in the data"
    doubt = f"The model's head {some}; check that this is the data the model was trained on."
    return (doubt,) if len(used) < outputs else ()
