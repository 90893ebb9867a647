"""What all settings share: fields with help, checks of values, and a plain dictionary."""

from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import field
from enum import Enum
from typing import Any, TypeVar

__all__ = ["Config", "check_flag", "check_number", "choice", "inverse_temperature", "option", "positive_grid"]

E = TypeVar("E", bound=Enum)

LARGEST = 1e30
"""Beyond this, float32 overflows where it is squared or added up; no setting means that much."""


def option(default: Any, help: str) -> Any:
    """A dataclass field with its help text (read by ``HfArgumentParser``)."""
    return field(default=default, metadata={"help": help})


def choice(kind: type[E], value: str | E, name: str, *, without: E | None = None) -> E:
    """Turn a string into a member of a closed choice, or say which there are (``without`` one that does not fit)."""
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(repr(member.value) for member in kind if member is not without)
        raise ValueError(f"{name} must be one of {known}; got {value!r}.") from None


def inverse_temperature(value: float | str) -> float | str:
    """Check η: a positive number, or ``"n"`` for the size of the training set."""
    if isinstance(value, str) and value.strip().lower() == "n":
        return "n"
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number <= LARGEST or isinstance(value, bool):
        raise ValueError(f"eta must be a positive number, or 'n' for the number of training examples; got {value!r}.")
    return number


def check_number(config: object, name: str, *, minimum: float, integer: bool = False, strict: bool = False) -> None:
    """Raise unless the field ``name`` is a finite number of at least ``minimum``; numpy's become Python's."""
    value = getattr(config, name)
    kind = "an integer" if integer else "a finite number"
    right_type = isinstance(value, numbers.Integral if integer else numbers.Real) and not isinstance(value, bool)
    in_range = right_type and (minimum < value if strict else minimum <= value) and value <= LARGEST
    if not in_range:
        bound = "greater than" if strict else "of at least"
        limit = f" and at most {LARGEST:g}" if right_type and value > LARGEST else ""
        raise ValueError(f"{name} must be {kind} {bound} {minimum}{limit}; got {value!r}.")
    if not isinstance(value, (int, float)) or type(value).__module__ == "numpy":
        object.__setattr__(config, name, int(value) if integer else float(value))


def check_flag(config: object, name: str) -> None:
    """Raise unless the field ``name`` is true or false."""
    value = getattr(config, name)
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False; got {value!r}.")


def positive_grid(name: str, values: Any) -> list[float] | None:
    """A list of different positive numbers in ascending order, or None."""
    if values is None:
        return None
    try:
        grid = [float(value) for value in values]
    except (TypeError, ValueError):
        grid = []
    if not grid or not all(math.isfinite(value) and value > 0 for value in grid):
        raise ValueError(f"{name} must be a list of positive, finite numbers; got {values!r}.")
    return sorted(set(grid))


class Config:
    """What the settings share: a plain dictionary that is stored beside results."""

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Any:
        """The settings from ``to_dict()``; an unknown key is an error that names it."""
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"{cls.__name__} has no setting {', '.join(map(repr, unknown))}; it has {', '.join(sorted(known))}."
            )
        return cls(**values)
