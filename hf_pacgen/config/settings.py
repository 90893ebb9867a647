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

E = TypeVar("E", bound=Enum)
# rule(value, name) -> the value as it is stored, or a ValueError that names the setting
Rule = Callable[[Any, str], Any]
LARGEST = 1e30  # beyond this, float32 overflows where it is squared or added up; no setting means that much
SUBSET = "Use at most this many examples: a seeded random subset of a dataset, the first of any other data."


def option(default: Any, help: str) -> Any:
    """A dataclass field with its help text; its type names its rule, as ``Count``."""
    # HfArgumentParser reads the key "help"
    return dataclasses.field(default=default, metadata={"help": help})


def choice(kind: type[E], value: str | E, name: str, *, without: Collection[E] = ()) -> E:
    """Turn a string into a member of a closed choice, or say which there are (``without`` some that do not fit)."""
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(repr(member.value) for member in kind if member not in without)
        raise ValueError(f"{name} must be one of {known}; got {value!r}.") from None


def temperature(value: Any, name: str) -> float | str:
    """η: a positive number, or ``"n"`` for the size of the training set."""
    if isinstance(value, str) and value.strip().lower() == "n":
        return "n"
    try:
        eta = float(value)
    except (TypeError, ValueError, OverflowError):
        eta = math.nan
    # NaN fails every comparison; True would pass for 1
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
    # numpy's float64 is a float, but JSON and repr() should show Python's
    if isinstance(value, (int, float)) and type(value).__module__ != "numpy":
        return value
    return int(value) if integer else float(value)


def flag(value: Any, name: str) -> bool:
    """The value, which must be true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False; got {value!r}.")
    return value


def grid(values: Any, name: str) -> list[float]:
    """Different positive numbers in ascending order."""
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError):
        found = []
    if not found or not all(math.isfinite(value) and value > 0 for value in found):
        raise ValueError(f"{name} must be a list of positive, finite numbers; got {values!r}.")
    return sorted(set(found))


def seed(value: Any, name: str) -> int:
    """A seed, which torch's generators take up to 64 bits."""
    found: int = number(value, name, minimum=0, integer=True)
    if found >= 2**64:
        raise ValueError(f"{name} must be an integer of at least 0 and less than 2**64; got {value!r}.")
    return found


# a parser of arguments sees int and float, _rules() the function beside them
natural = partial(number, minimum=0, integer=True)
count = partial(number, minimum=1, integer=True)
Positive = Annotated[float, partial(number, minimum=0, strict=True)]
NonNegative = Annotated[float, partial(number, minimum=0)]
Natural = Annotated[int, natural]
Seed = Annotated[int, seed]
Count = Annotated[int, count]
Temperature = Annotated[float | str, temperature]
Grid = Annotated[list[float], grid]


class Config:
    """Settings: a frozen dataclass that checks its values and is stored beside results as a plain dictionary."""

    def __post_init__(self) -> None:
        """Apply the rule of every field's type; checks across fields belong into the subclass."""
        for name, rule, optional in _rules(type(self)):  # type: ignore[arg-type]  # mypy: a type is hashable
            value = getattr(self, name)
            # None is a setting of its own where the type allows it: "choose for me"
            if not (optional and value is None):
                object.__setattr__(self, name, rule(value, name))

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}

    @classmethod
    def short_names(cls) -> dict[str, Callable[[], Any]]:
        """What stands for whole settings where one word is given, and how to make them."""
        return {}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Any:
        """The settings from ``to_dict()``; an unknown key is an error that names it."""
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(values) - known):
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
            rule: Rule | None = flag if part is bool else None
            if get_origin(part) is Annotated:  # such as Count
                rule = part.__metadata__[0]
            # Python 3.10 takes list[str] for a type, of which nobody may ask what it is a subclass of
            elif get_origin(part) is None and isinstance(part, type) and issubclass(part, Enum):
                rule = partial(choice, part)
            if rule is not None:
                found.append((name, rule, NoneType in parts))
    return found
