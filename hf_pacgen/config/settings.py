"""What all settings share: fields with help, rules that go with their types, and a plain dictionary.

A field says what its values may be by its type: ``draws: Count = option(64, "…")`` takes integers from 1.  Members of
an enum, and flags, need no more than their types.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Collection
from enum import Enum
from functools import cache, partial
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from hf_pacgen.facts import complete

__all__ = ["Config", "Count", "Grid", "Natural", "NonNegative", "Positive", "Temperature", "option"]
__all__ += ["check_flag", "check_number", "choice", "complete", "inverse_temperature"]

E = TypeVar("E", bound=Enum)
Rule = Callable[[Any, str], Any]
"""``rule(value, name)`` -> the value as it is stored, or a ``ValueError`` that names the setting."""

LARGEST = 1e30
"""Beyond this, float32 overflows where it is squared or added up; no setting means that much."""


def option(default: Any, help: str) -> Any:
    """A dataclass field with its help text (read by ``HfArgumentParser``); its type names its rule, as ``Count``."""
    return dataclasses.field(default=default, metadata={"help": help})


def choice(kind: type[E], value: str | E, name: str, *, without: Collection[E] = ()) -> E:
    """Turn a string into a member of a closed choice, or say which there are (``without`` some that do not fit)."""
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(repr(member.value) for member in kind if member not in without)
        raise ValueError(f"{name} must be one of {known}; got {value!r}.") from None


def inverse_temperature(value: float | str, name: str = "eta") -> float | str:
    """Check η: a positive number, or ``"n"`` for the size of the training set."""
    if isinstance(value, str) and value.strip().lower() == "n":
        return "n"
    try:
        eta = float(value)
    except (TypeError, ValueError, OverflowError):
        eta = math.nan
    if not 0 < eta <= LARGEST or isinstance(value, bool):
        raise ValueError(
            f"{name} must be a positive number, or 'n' for the number of training examples; got {value!r}."
        )
    return eta


def number(value: Any, name: str, *, minimum: float, integer: bool = False, strict: bool = False) -> Any:
    """The value, which must be a finite number of at least ``minimum``; numpy's become Python's."""
    kind = "an integer" if integer else "a finite number"
    right_type = isinstance(value, numbers.Integral if integer else numbers.Real) and not isinstance(value, bool)
    in_range = right_type and (minimum < value if strict else minimum <= value) and value <= LARGEST
    if not in_range:
        bound = "greater than" if strict else "of at least"
        limit = f" and at most {LARGEST:g}" if right_type and value > LARGEST else ""
        raise ValueError(f"{name} must be {kind} {bound} {minimum}{limit}; got {value!r}.")
    if isinstance(value, (int, float)) and type(value).__module__ != "numpy":
        return value
    return int(value) if integer else float(value)


def flag(value: Any, name: str) -> bool:
    """The value, which must be true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False; got {value!r}.")
    return value


def check_number(config: object, name: str, **limits: Any) -> None:
    """Apply :func:`number` to a field."""
    object.__setattr__(config, name, number(getattr(config, name), name, **limits))


def check_flag(config: object, name: str) -> None:
    """Apply :func:`flag` to a field."""
    flag(getattr(config, name), name)


def positive_grid(values: Any, name: str) -> list[float]:
    """A list of different positive numbers in ascending order."""
    try:
        grid = [float(value) for value in values]
    except (TypeError, ValueError):
        grid = []
    if not grid or not all(math.isfinite(value) and value > 0 for value in grid):
        raise ValueError(f"{name} must be a list of positive, finite numbers; got {values!r}.")
    return sorted(set(grid))


Positive = Annotated[float, partial(number, minimum=0, strict=True)]
NonNegative = Annotated[float, partial(number, minimum=0)]
Natural = Annotated[int, partial(number, minimum=0, integer=True)]
Count = Annotated[int, partial(number, minimum=1, integer=True)]
Temperature = Annotated[float | str, inverse_temperature]
Grid = Annotated[list[float], positive_grid]


class Config:
    """Settings: a frozen dataclass that checks its values and is stored beside results as a plain dictionary."""

    def __post_init__(self) -> None:
        """Apply the rule of every field's type; checks across fields belong into the subclass."""
        for name, rule, optional in _rules(type(self)):  # type: ignore[arg-type]  # mypy: a type is hashable
            value = getattr(self, name)
            if not (optional and value is None):
                object.__setattr__(self, name, rule(value, name))

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


@cache
def _rules(kind: type[Config]) -> list[tuple[str, Rule, bool]]:
    """Name, rule, and whether None is allowed, of every field whose type has a rule."""
    found: list[tuple[str, Rule, bool]] = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        for part in parts:
            if get_origin(part) is Annotated:  # such as Count
                found.append((name, part.__metadata__[0], NoneType in parts))
            elif isinstance(part, type) and issubclass(part, Enum):
                found.append((name, partial(choice, part), NoneType in parts))
            elif part is bool:
                found.append((name, flag, NoneType in parts))
    return found
