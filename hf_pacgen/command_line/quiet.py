"""Quiet libraries while the command line reads what it was given."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def quiet(*, data_bars: bool = False) -> Iterator[None]:
    """Silence the libraries' own reports for a while: what matters of them is said in our words.

    ``data_bars`` keeps the progress bars of ``datasets``, for data that is downloaded, where standard
    error is a terminal.
    """
    import datasets  # here, since both take a while to import
    from transformers.utils import logging as transformers_logging

    with ExitStack() as stack:  # everything is put back as it was found
        for name in ("transformers", "datasets", "huggingface_hub"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        if transformers_logging.is_progress_bar_enabled():
            stack.callback(transformers_logging.enable_progress_bar)
            transformers_logging.disable_progress_bar()
        # what the user turned off stays off
        shown = data_bars and sys.stderr.isatty()  # a file would get a line for every step
        if not shown and datasets.are_progress_bars_disabled() is False:
            stack.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        yield
