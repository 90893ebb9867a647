"""Closed choices whose members carry their facts, so that no other file has to know which members there are.

``fruit.facts.price`` instead of ``if fruit is APPLE: … else: …``: a member that nobody thought of cannot slip through.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any, NoReturn

__all__ = ["Choice"]


class Choice(str, Enum):
    """A closed choice of strings: ``NAME = "value", facts``.

    A member is its string for comparisons and JSON.  One without facts is refused where its class is made, that is on
    import; a value that no member has is a ``ValueError`` that lists them.

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
        # not the pair: the string alone is looked up, pickled and compared
        member._value_ = value
        member.facts = facts[0]
        return member

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        # NoiseDistribution is called distribution wherever it is a setting
        name = re.findall("[A-Z][^A-Z]*", cls.__name__)[-1].lower()
        raise ValueError(f"{name} must be one of {', '.join(repr(m.value) for m in cls)}; got {value!r}.")
