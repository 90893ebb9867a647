"""Facts about the members of an enum: a table with one row a member, checked when it is made.

``price = PRICES[fruit]`` instead of ``if fruit is APPLE: … else: …``: a member that nobody thought of raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

__all__ = ["Facts", "complete"]

M = TypeVar("M", bound=Enum)
F = TypeVar("F")


class Facts(dict[M, F]):
    """What is known about each member of an enum; asking for a member without a row is an error that names it."""

    def __missing__(self, member: M) -> F:
        raise LookupError(f"No facts about {member!r}: expected one of {', '.join(map(repr, self))}. Add its row.")


def complete(kind: type[M], table: Mapping[M, F]) -> Facts[M, F]:
    """The table, if it has one row for every member of ``kind`` and no other.

    Raises:
        LookupError: a member has no row, or a row no member.

    >>> class Fruit(Enum):
    ...     APPLE = 1
    ...     PEAR = 2
    >>> complete(Fruit, {Fruit.APPLE: 0.5})
    Traceback (most recent call last):
        ...
    LookupError: Fruit must have one row of facts for each member; missing: PEAR. Write the rows beside the enum.
    """
    missing = [member.name for member in kind if member not in table]
    unknown = [repr(key) for key in table if not isinstance(key, kind)]
    wrong = [f"{what}: {', '.join(rows)}" for what, rows in (("missing", missing), ("unknown", unknown)) if rows]
    if wrong:
        raise LookupError(
            f"{kind.__name__} must have one row of facts for each member; {'; '.join(wrong)}. "
            "Write the rows beside the enum."
        )
    return Facts(table)
