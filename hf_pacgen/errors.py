"""The error of what a user gave, and what several messages say.  Imports nothing of the package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["PRIOR_VOUCH", "VOUCH", "InputError", "describe", "few", "listing", "refusing"]

VOUCH = "CertificateConfig(assume_independent=True)"
"""The remedy where only the user can know that examples and prior are independent."""
PRIOR_VOUCH = f"{VOUCH}, or --prior-is-independent on the command line"
"""The same, where it is the prior that may have seen the examples."""


class InputError(ValueError):
    """What the user gave cannot be used.  The message says what was expected, what came and what to do."""


def describe(error: BaseException) -> str:
    """The first line of the deepest cause of an error: libraries wrap the informative one in general ones."""
    # only what was raised `from` it: the context may be any error that was handled on the way
    while (cause := error.__cause__) is not None:
        error = cause
    # libraries add hints, paths and stack traces of their own below
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def refusing(
    failed: str, remedy: str = "", *, kind: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Iterator[None]:
    """Make one sentence of the errors of libraries: what failed, why, and what to do.

    >>> with refusing("The file cannot be read", "Save it again.", kind=OSError):
    ...     raise OSError("the disk is gone.")
    Traceback (most recent call last):
        ...
    hf_pacgen.errors.InputError: The file cannot be read: the disk is gone. Save it again.
    """
    try:
        yield
    except InputError:  # it says all this already
        raise
    except kind as error:
        raise InputError(f"{failed}: {describe(error)}. {remedy}".rstrip()) from error


def few(names: Iterable[str], most: int = 4) -> str:
    """The first names, and how many more there are.

    >>> few(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def listing(names: Iterable[str], most: int = 4) -> str:
    """The same, in quotation marks."""
    return few(map(repr, names), most)
