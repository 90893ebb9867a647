"""The error of what a user gave, and what several messages say.  Imports nothing of the package."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["VOUCH", "InputError", "describe", "listing"]

VOUCH = "CertificateConfig(assume_independent=True)"
"""The remedy where only the user can know that examples and prior are independent."""


class InputError(ValueError):
    """What the user gave cannot be used.  The message says what was expected, what came and what to do."""


def describe(error: BaseException) -> str:
    """The first line of the deepest cause of an error: libraries wrap the informative one in general ones."""
    while (cause := error.__cause__) is not None:
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def listing(names: Iterable[str], most: int = 4) -> str:
    """The first names, in quotation marks, and how many more there are.

    >>> listing(["a", "b", "c"], most=2)
    "'a', 'b' and 1 more"
    """
    found = list(names)
    return ", ".join(map(repr, found[:most])) + (f" and {len(found) - most} more" if len(found) > most else "")
