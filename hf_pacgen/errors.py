"""The error of what a user gave.  Imports nothing."""

from __future__ import annotations

__all__ = ["InputError", "describe"]


class InputError(ValueError):
    """What the user gave cannot be used.  The message says what was expected, what came and what to do."""


def describe(error: BaseException) -> str:
    """The first line of the deepest cause of an error: libraries wrap the informative one in general ones."""
    while (cause := error.__cause__) is not None:
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
