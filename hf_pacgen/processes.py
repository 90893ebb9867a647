"""The only room that talks to accelerate and torch.distributed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Processes", "send_to_device"]


class Processes:
    """The processes that share a computation: one without an accelerator, its own with one.

    Collectives run on every rank or on none: between :meth:`together` and the next collective a
    failing rank tells the others, so that all raise and none waits for ever.
    """

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        self.accelerator = accelerator
        self.rank = accelerator.process_index if accelerator is not None else 0
        self.size = accelerator.num_processes if accelerator is not None else 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            on_device = self._on_device(tensor)
            torch.distributed.all_reduce(on_device)
            if on_device is not tensor:
                tensor.copy_(on_device)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """The picklable ``value`` of every process, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a part without collectives on every rank; if it fails on one, raise on all."""
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        try:
            failures = self.gather(f"{type(error).__name__}: {error}" if error is not None else None)
        except RuntimeError:
            if error is not None:  # the others are gone already: the cause says more than the lost connection
                raise error from None
            raise
        if error is not None:
            raise error
        for rank, failure in enumerate(failures):
            if failure is not None:
                raise RuntimeError(f"Process {rank} of {self.size} failed, so all stop. It said: {failure}")

    def _on_device(self, tensor: Tensor) -> Tensor:
        # NCCL reduces GPU tensors only, wherever the sums were made
        return tensor if self.accelerator is None else tensor.to(self.accelerator.device).contiguous()
