"""Run a function in two processes that really are two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState, GradientState, PartialState


def on_two_processes(function: Callable[..., None], *args: Any) -> None:
    """Call ``function(*args)`` on both, as ``torchrun`` would; an exception in either fails the test."""
    debug_launcher(_alone, (function, args), num_processes=2)


def _alone(function: Callable[..., None], args: tuple[Any, ...]) -> None:
    # a forked process inherits accelerate's idea of being alone, if an earlier test had one
    for state in (PartialState, AcceleratorState, GradientState):
        state._shared_state.clear()
    torch.set_num_threads(1)
    if PartialState(cpu=True).num_processes != 2:
        raise RuntimeError("expected two processes")
    function(*args)
