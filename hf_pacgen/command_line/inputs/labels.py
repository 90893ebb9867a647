"""Labels as the model's head numbers them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from hf_pacgen.errors import InputError

__all__ = ["Labels", "encode_labels"]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """How a raw label becomes the model's: a class number, or a real number for regression.

    Attributes:
        numbers: class number by raw label; None for regression.
        num_labels: outputs a head for these labels has.
        notes: what was assumed, in sentences.
    """

    numbers: Mapping[Any, int] | None
    num_labels: int
    notes: tuple[str, ...] = ()

    def __call__(self, raw: Any) -> int | float:
        return float(raw) if self.numbers is None else self.numbers[raw]


def encode_labels(table: datasets.Dataset, column: str, config: Any, *, new_head: bool) -> Labels:
    """Match the labels of a column with the outputs of the model's head.

    Args:
        config: of the model; its ``num_labels`` and ``label2id`` count unless the head is new.
        new_head: the head is made for these labels.
    """
    check_complete(table, column, "a label")
    feature = table.features[column]
    if not new_head and config.num_labels == 1:
        if isinstance(feature, datasets.ClassLabel) or "string" in feature.dtype:
            raise InputError(
                f"The model's head has 1 output, which is for regression, but the column {column!r} holds classes: "
                "expected numbers. Give the model that was trained on these labels."
            )
        return Labels(numbers=None, num_labels=1)
    values = sorted(table.unique(column))
    _check_classes(values, column, feature)
    if isinstance(values[0], str) or isinstance(feature, datasets.ClassLabel):
        labels = _named(values, feature, column, config, new_head)
    else:
        labels = _numbered(values, new_head)
    if not new_head:
        return _fitted(labels, values, column, config.num_labels)
    if labels.num_labels < 2:
        raise InputError(
            f"The column {column!r} holds one single label, {values[0]!r}: expected at least 2 classes. "
            "Give the data the model is trained on."
        )
    return labels


def check_complete(table: datasets.Dataset, column: str, what: str) -> None:
    """Raise if a column has empty cells."""
    cells = table.with_format("arrow").select_columns([column])[:][column]
    if not cells.null_count:
        return
    first = cells.is_null().index(True).as_py()
    raise InputError(
        f"The column {column!r} has no value in {cells.null_count:,} of {len(table):,} rows (the first is row {first}, "
        f"counted from 0): expected {what} in each. Remove those rows."
    )


def _check_classes(values: list[Any], column: str, feature: Any) -> None:
    if isinstance(values[0], str):
        return
    real = [value for value in values if isinstance(value, float) and not value.is_integer()]
    if real:
        shown = "NaN" if math.isnan(real[0]) else repr(real[0])
        raise InputError(
            f"The column {column!r} holds {shown}: expected class numbers or names. For regression, give a model whose "
            "head has 1 output."
        )
    if values[0] < 0:
        hidden = " Hidden labels of a test split are often written as -1; score the split the model was trained on."
        raise InputError(f"The column {column!r} holds the label {values[0]}: expected class numbers from 0.{hidden}")


def _named(values: list[Any], feature: Any, column: str, config: Any, new_head: bool) -> Labels:
    is_class = isinstance(feature, datasets.ClassLabel)
    names = list(feature.names) if is_class else values
    keys = list(range(len(names))) if is_class else names
    own = {} if new_head else {str(k).casefold(): int(v) for k, v in (config.label2id or {}).items()}
    wanted = [str(name).casefold() for name in names]
    if set(wanted) <= set(own):
        numbers = {key: own[name] for key, name in zip(keys, wanted, strict=True)}
        return Labels(numbers=numbers, num_labels=config.num_labels)
    numbers = {key: number for number, key in enumerate(keys)}
    order = _in_order(names)
    if is_class or new_head:
        notes = (f"Labels are numbered in alphabetical order: {order}.",) if new_head and not is_class else ()
        return Labels(numbers=numbers, num_labels=len(names), notes=notes)
    # transformers calls the classes LABEL_0, LABEL_1, ... where nobody has named them
    unnamed = all(name.startswith("label_") for name in own)
    if not unnamed and len(names) <= config.num_labels:
        odd = next(name for name, key in zip(names, wanted, strict=True) if key not in own)
        raise InputError(
            f"The label {odd!r} in the column {column!r} is none of the model's: expected one of "
            f"{', '.join(map(repr, config.label2id))}. Rename the labels, or give the model that was trained on them."
        )
    note = (
        f"The model does not name its classes, so the labels were numbered in alphabetical order: {order}. "
        "If it was trained with another numbering, give numbers as labels."
    )
    return Labels(numbers=numbers, num_labels=len(names), notes=(note,))


def _numbered(values: list[Any], new_head: bool) -> Labels:
    as_given = {value: int(value) for value in values}
    highest = max(as_given.values())
    if not new_head or len(values) == highest + 1:
        return Labels(numbers=as_given, num_labels=highest + 1)
    return Labels(
        numbers={value: number for number, value in enumerate(values)},
        num_labels=len(values),
        notes=(f"Labels are numbered in ascending order for the new head: {_in_order(values)}.",),
    )


def _in_order(names: Sequence[Any]) -> str:
    return ", ".join(f"{name} = {number}" for number, name in enumerate(names[:10])) + ", ..." * (len(names) > 10)


def _fitted(labels: Labels, values: list[Any], column: str, outputs: int) -> Labels:
    numbers = labels.numbers or {}
    used = [numbers[value] for value in values]
    if max(used) >= outputs:
        count = f"{len(values)} classes" if len(values) > outputs else f"the label {max(used)}"
        raise InputError(
            f"The column {column!r} holds {count} (numbered up to {max(used)}), but the model's head has {outputs} "
            f"outputs (classes 0 to {outputs - 1}). Give the data this model was trained on, "
            "or the model trained on this data."
        )
    notes = labels.notes
    if len(values) < outputs:
        notes += (
            f"The model's head has {outputs} outputs, but only {len(values)} different labels occur in the data; "
            "check that this is the data the model was trained on.",
        )
    return Labels(numbers=numbers, num_labels=outputs, notes=notes)
