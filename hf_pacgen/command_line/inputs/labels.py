"""Labels as the model's head numbers them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from hf_pacgen.command_line.inputs.columns import Columns, is_list, is_text, item_of
from hf_pacgen.command_line.inputs.data import check_complete
from hf_pacgen.errors import InputError, few

Numbered = tuple[dict[Any, int], tuple[str, ...]]  # class numbers by raw label, and what was assumed


@dataclass(frozen=True, kw_only=True)
class Labels:
    """How a raw label becomes the model's.

    Attributes:
        numbers: class number by raw label; None where labels are numbers themselves.
        num_labels: outputs that a head for these labels has.
        notes: what was assumed, in sentences.
        column: where they come from.
        several: whether a raw label is a list of them.
        hot: whether several labels become a vector with a 1 for each, as for a loss of several labels at once.
    """

    numbers: Mapping[Any, int] | None
    num_labels: int
    notes: tuple[str, ...] = ()
    column: str = "label"
    several: bool = False
    hot: bool = False

    def __call__(self, raw: Any) -> Any:
        """The label of a row: a number, or a list where a row has several."""
        if not self.several:
            return self._one(raw)
        found = [self._one(value) for value in raw]
        if self.numbers is None and len(found) != self.num_labels:
            raise InputError(
                f"The column {self.column!r} has a row of {len(found)} numbers: expected one for each of the model's "
                f"{self.num_labels} outputs. Repair the data, or give the model that was trained on it."
            )
        if not self.hot or self.numbers is None:
            return found
        vector = [0.0] * self.num_labels
        for number in found:
            vector[number] = 1.0
        return vector

    def _one(self, raw: Any) -> Any:
        if self.numbers is None:
            return float(raw)
        if raw in self.numbers:
            return self.numbers[raw]
        # of a stream, whose later rows were not looked at, or of other data than the head was made for
        if isinstance(raw, int) and not isinstance(raw, bool) and 0 <= raw < self.num_labels:
            return raw
        raise InputError(
            f"The label {raw!r} in the column {self.column!r} is none of those in the training data, or in the first "
            f"rows of the stream, and no class of the model: expected one of {few(map(repr, self.numbers), 8)}. Repair "
            "it, or leave out --streaming."
        )


def class_labels(table: datasets.Dataset, columns: Columns, config: Any, *, new_head: bool) -> Labels:
    """One class for each row, matched with the outputs of the model's head, or of a new head made for them."""
    column = str(columns.label)
    check_complete(table, column, "a label")
    return class_numbers(sorted(table.unique(column)), table.features[column], column, config, new_head=new_head)


def sequence_labels(table: datasets.Dataset, columns: Columns, config: Any, *, new_head: bool) -> Labels:
    """The labels of texts: a class, a real number for regression, or several classes at once."""
    problem = None if new_head else getattr(config, "problem_type", None)
    for name in columns.outputs:
        check_complete(table, name, "a label")
    if columns.labels:
        return Labels(numbers=None, num_labels=config.num_labels, several=True, hot=True)
    column = str(columns.label)
    feature = table.features[column]
    outputs = config.num_labels
    if is_list(feature):
        if problem == "single_label_classification" or (problem is None and not new_head and outputs == 1):
            raise InputError(
                f"The column {column!r} holds lists of labels, and the model is trained for a single one ({outputs} "
                f"{'output' if outputs == 1 else 'outputs'}). Give the model that was trained on these labels, or "
                "another --label-column."
            )
        if problem == "regression":
            return Labels(numbers=None, num_labels=outputs, several=True, column=column)
        return _several(table, column, item_of(feature), config, new_head)
    if problem == "multi_label_classification":
        raise InputError(
            f"The model is trained for several labels at once, and the column {column!r} holds one for each row: "
            f"expected lists of labels, or a column of 0 and 1 for each of {few(_own_names(config), 8)}."
        )
    if problem == "regression" and outputs > 1:
        raise InputError(
            f"The model is trained for the regression of {outputs} numbers, and the column {column!r} holds one for "
            "each row: expected lists of numbers. Give the data it was trained on."
        )
    if not new_head and outputs == 1:  # transformers takes a single output for regression
        if isinstance(feature, datasets.ClassLabel) or "string" in feature.dtype:
            raise InputError(
                f"The model's head has 1 output, which is for regression, but the column {column!r} holds classes: "
                "expected numbers. Give the model that was trained on these labels."
            )
        return Labels(numbers=None, num_labels=1, column=column)
    return class_labels(table, columns, config, new_head=new_head)


def tag_labels(table: datasets.Dataset, columns: Columns, config: Any, *, new_head: bool) -> Labels:
    """A class for each word of a row."""
    column = str(columns.label)
    check_complete(table, column, "tags")
    values = _values(table, column)
    if not values:
        raise InputError(f"The column {column!r} has no tag in any row: there is nothing to score.")
    found = class_numbers(values, item_of(table.features[column]), column, config, new_head=new_head)
    return dataclasses.replace(found, several=True)


def _values(table: datasets.Dataset, column: str) -> list[Any]:
    """The different entries of a column of lists."""
    return sorted({value for row in table.select_columns([column])[:][column] for value in row if value is not None})


def _several(table: datasets.Dataset, column: str, feature: Any, config: Any, new_head: bool) -> Labels:
    if not isinstance(feature, datasets.ClassLabel) and not is_text(feature):
        lists = table.select_columns([column])[:][column]
        width = len(lists[0]) if new_head else config.num_labels
        if width and all(len(row) == width and set(row) <= {0, 1} for row in lists):
            return Labels(numbers=None, num_labels=width, several=True, hot=True, column=column)
    found = class_numbers(_values(table, column), feature, column, config, new_head=new_head)
    return dataclasses.replace(found, several=True, hot=True)


def class_numbers(values: list[Any], feature: Any, column: str, config: Any, *, new_head: bool) -> Labels:
    """The numbers of some different raw labels, in ascending order."""
    if not values:
        raise InputError(f"The column {column!r} has no label in any row: there is nothing to score.")
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
    outputs = len(numbers) if new_head else config.num_labels
    return Labels(numbers=numbers, num_labels=outputs, notes=notes, column=column)


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
    exact = {} if new_head else {str(k): int(v) for k, v in (config.label2id or {}).items()}
    if set(map(str, names)) <= set(exact):
        return {key: exact[str(name)] for key, name in zip(keys, names, strict=True)}, ()
    # case is no difference: "Positive" in the data is the model's "positive"
    own = {} if new_head else {str(k).casefold(): int(v) for k, v in (config.label2id or {}).items()}
    wanted = [str(name).casefold() for name in names]
    if set(wanted) <= set(own):
        return {key: own[name] for key, name in zip(keys, wanted, strict=True)}, ()
    numbers = {key: number for number, key in enumerate(keys)}
    # transformers calls the classes LABEL_0, LABEL_1, ... where nobody has named them
    unnamed = all(name.startswith("label_") for name in own)
    if is_class:
        if unnamed:
            return numbers, ()
        differ = f"The classes of the column {column!r} ({few(map(str, names), 3)}) are not named as the model's"
        return numbers, (f"{differ} ({few(_own_names(config), 3)}): they are taken by their numbers.",)
    in_order = f"numbered in alphabetical order: {_in_order(names)}."
    if new_head:
        return numbers, (f"Labels are {in_order}",)
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


def _own_names(config: Any) -> list[str]:
    return [str(name) for name in sorted(config.label2id, key=config.label2id.get)]


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
