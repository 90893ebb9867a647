"""What a field of a result says about itself, and whether a value read from JSON is of its type.

A metric's key, its label, unit and meaning stand once, beside the field.  Logs, cards, tables, plots and docs ask here.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

FACTS = "facts"  # key of the facts in a field's metadata


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a field is."""

    says: str  # what the number means, as in a table
    label: str = ""  # its name for people, such as Ψ; empty for what is no measure
    unit: str = ""  # such as "nats"
    better: str | None = None  # "lower" or "higher", where one of them is better
    key: str | None = None  # under which a Trainer logs it and the metric reports it; None for what is no metric
    title: str = ""  # what the hub calls it on a model card
    span: str = ""  # the values it can take
    detail: bool = False  # whether its row in a table belongs to the row above it
    legacy: bool = False  # whether it is only kept for those who read it by its key, and shown no more
    written: bool = True  # whether it is written as JSON, which has no place for tensors

    def __post_init__(self) -> None:
        if self.better not in (None, "lower", "higher"):
            raise ValueError(f"better must be 'lower', 'higher' or None; got {self.better!r}.")

    @property
    def is_share(self) -> bool:
        """Whether it is shown in percent."""
        return self.span == "[0, 1]"

    @property
    def row(self) -> str:
        """The label at the head of a table's row."""
        return f"  {self.label}" if self.detail else self.label

    @property
    def axis(self) -> str:
        """The label along an axis, with the unit."""
        return f"{self.label}, in {self.unit}" if self.unit else self.label

    @property
    def meaning(self) -> str:
        """What the number means, its unit, and which direction is better."""
        if self.detail:  # the row above has the unit
            return self.says
        return self.says + (f", in {self.unit}" if self.unit else "") + self._direction

    @property
    def name(self) -> str:
        """What the hub calls it, such as "PACGen (Ψ, nats; lower is better)"."""
        return f"{self.title} ({self.label}, {self.unit}{self._direction})" if self.unit else self.title

    @property
    def _direction(self) -> str:
        return f"; {self.better} is better" if self.better else ""


def measured(label: str, *, says: str, default: Any = MISSING, **facts: Any) -> Any:
    """A field of a result that is a measure; ``facts`` are further ones of :class:`Facts`."""
    return _field(Facts(label=label, says=says, **facts), default)


def other(says: str, *, default: Any = MISSING, written: bool = True) -> Any:
    """A field of a result that is no measure, such as a time or a setting."""
    return _field(Facts(says=says, written=written), default)


def origin() -> Any:
    """The field of a result that says where it comes from."""
    return other(
        "where it comes from: the model with the checksum of its weights, the data, the versions, the command; empty "
        "in files of release 0.1",
        default=dict,
    )


def like(kind: Any, name: str, *, optional: bool = False) -> Any:
    """A field that means the same as that of another result; ``optional`` where it may be missing here, as None."""
    field = kind.__dataclass_fields__[name]
    return _field(field.metadata[FACTS], None) if optional else varied(field)


def varied(field: Any, **changes: Any) -> Any:
    """A field like another one, but for some of its facts."""
    facts = field.metadata[FACTS]
    return _field(dataclasses.replace(facts, **changes) if changes else facts, field.default)


def _field(facts: Facts, default: Any) -> Any:
    metadata = {FACTS: facts}
    if default is dict:  # a dataclass takes no mutable default
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of the type that a field is declared with."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is types.UnionType:  # such as float | None
        return any(fits(value, argument) for argument in arguments)
    if hint in (int, float):  # a whole number is written without a point, and a bool would pass for an int
        is_number = isinstance(value, (int, hint)) and not isinstance(value, bool)
        # NaN is not less than anything, and math.isfinite fails on an integer with more than 308 digits
        return is_number and abs(value) <= sys.float_info.max
    if origin is dict:
        key, entry = arguments
        return isinstance(value, Mapping) and all(fits(k, key) and fits(v, entry) for k, v in value.items())
    if origin is tuple:  # a string would become a tuple of letters
        return isinstance(value, (list, tuple)) and all(fits(entry, arguments[0]) for entry in value)
    return isinstance(value, hint)


def describe_type(hint: Any) -> str:
    """A type in words; a tuple is written as a list."""
    plain = isinstance(hint, type) and not typing.get_args(hint)
    return hint.__name__ if plain else str(hint).replace("tuple[", "list[").replace(", ...]", "]")


def excerpt(value: Any) -> str:
    """The beginning of what came, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
