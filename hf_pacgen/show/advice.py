"""One consistent next step under a table, whose sentences come from measures that know nothing of each other."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NAME = r"(?!(?:raise|larger|more|lower|smaller|fewer)\b)(?:--)?[a-z][\w-]*"
_NAMES = rf"({_NAME}(?:(?:, | or | and ){_NAME})*)"
_DIRECTIONS = {
    "up": re.compile(rf"\b(?:raise|larger|more)\s+{_NAMES}", re.IGNORECASE),
    "down": re.compile(rf"\b(?:lower|smaller|fewer)\s+{_NAMES}", re.IGNORECASE),
}


def consistent(notes: Iterable[str]) -> list[str]:
    """The notes without advice that contradicts that of an earlier note: what limits the numbers comes first.

    A clause that would move a setting the other way is left out; what the note found stays.

    >>> consistent(["It is flat. Raise eta or epsilon.", "It is steep. More passes help; a smaller epsilon does too."])
    ['It is flat. Raise eta or epsilon.', 'It is steep. More passes help.']
    """
    moved: dict[str, str] = {}
    kept = []
    for note in notes:
        sentences = []
        for sentence in re.split(r"(?<=[.!?]) ", note):
            clauses = [clause for clause in sentence.rstrip(".").split("; ") if not _contradicts(clause, moved)]
            if clauses:
                sentences.append("; ".join(clauses) + "." * sentence.endswith("."))
        kept.append(" ".join(sentences))
    return [note for note in kept if note]


def _contradicts(clause: str, moved: dict[str, str]) -> bool:
    # whether it moves a setting against what was said before; if not, remember where it moves which
    found = {
        name.removeprefix("--"): direction
        for direction, pattern in _DIRECTIONS.items()
        for names in pattern.findall(clause)
        for name in re.split(r", | or | and ", names)
    }
    if any(moved.get(name, direction) != direction for name, direction in found.items()):
        return True
    moved.update(found)
    return False
