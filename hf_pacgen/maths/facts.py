"""Closed choices whose members carry their facts, so that no other file has to know which members there are."""

from __future__ import annotations

from enum import Enum
from typing import Any

__all__ = ["Choice"]


class Choice(str, Enum):
    """A closed choice of strings: ``NAME = "value", facts``.

    A member without facts is refused where its class is made, that is on import.

    >>> class Metal(Choice):
    ...     IRON = "iron", 7.9
    >>> Metal("iron").facts
    7.9
    """

    facts: Any

    def __new__(cls, value: str, *facts: Any) -> Choice:
        if len(facts) != 1:
            raise TypeError(f"{cls.__name__} has a member {value!r} without its facts: write NAME = {value!r}, facts.")
        member = str.__new__(cls, value)
        member._value_ = value
        member.facts = facts[0]
        return member
