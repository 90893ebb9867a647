"""What hangs on a model during a run: hooks, and the mark that it has noise.  Copies of the model leave both behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

MARK = "_pacgen_noise"  # attribute of every parameter that has noise now and then


class Hook:
    """A hook that a copied or pickled model leaves behind, after ``before_copy`` was called."""

    optimizer: Any = None  # that of the run, where the hook is a mark

    def __init__(self, call: Any = None, before_copy: Callable[[], None] | None = None) -> None:
        self._call, self._before_copy = call, before_copy

    def __call__(self, *args: Any) -> Any:
        return None if self._call is None else self._call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        # copy.deepcopy and pickle come here; a module's hooks are copied before the modules in it
        if self._before_copy is not None:
            self._before_copy()
        return Hook, ()


def take_over(model: nn.Module, optimizer: Any) -> None:
    """Close what an interrupted run left on a model's parameters: its noise would pass for weights."""
    for parameter in model.parameters():
        found = getattr(parameter, MARK, None)
        # the same optimizer is that of the same run
        if found is not None and optimizer is not None and found.optimizer is optimizer:
            raise ValueError(
                "Two of the PACGenTrainer and its PACGenCallbacks have noise, which would add up. Give it to one only."
            )
        if found is not None:
            found()


def mark(parameters: Iterable[Tensor], optimizer: Any, close: Callable[[], None]) -> None:
    """Let parameters know how to get rid of their noise, and whose it is."""
    hook = Hook(close)
    hook.optimizer = optimizer
    for parameter in parameters:
        setattr(parameter, MARK, hook)


def unmark(parameters: Iterable[Tensor]) -> None:
    """Remove the mark."""
    for parameter in parameters:
        if hasattr(parameter, MARK):
            delattr(parameter, MARK)
