"""One kind of error for what a user gave, and quiet libraries while it is being read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import datasets
from transformers.utils import logging as transformers_logging

__all__ = ["InputError", "describe", "quiet"]


class InputError(ValueError):
    """What the user gave cannot be used.  The message says what was expected, what came and what to do."""


def describe(error: BaseException) -> str:
    """The first line of the deepest cause of an error: libraries wrap the informative one in general ones."""
    while (cause := error.__cause__) is not None:
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def quiet(*, data_bars: bool = False) -> Iterator[None]:
    """Silence the libraries' own reports for a while: what matters of them is said in our words.

    Args:
        data_bars: keep the progress bars of ``datasets``, for data that is downloaded.
    """
    with ExitStack() as stack:
        for name in ("transformers", "datasets", "huggingface_hub"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        if transformers_logging.is_progress_bar_enabled():
            stack.callback(transformers_logging.enable_progress_bar)
            transformers_logging.disable_progress_bar()
        if not data_bars and datasets.are_progress_bars_disabled() is False:
            stack.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        yield
