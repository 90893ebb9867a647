"""The only room that talks to accelerate and torch.distributed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Processes", "rank_and_size", "send_to_device"]

ASK_AFTER = 1.0
"""Seconds between two questions to the store whether another process has failed."""
FAILED = "hf_pacgen/failed"
"""Key under which a failing process tells."""


class Processes:
    """The processes that share a computation: one without an accelerator, its own with one.

    Collectives run on every rank or on none: at the end of :meth:`together` a failing rank tells the others, so that
    all raise and none waits for ever.  Those that call :meth:`check` now and then need not even reach the end.
    """

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        self.rank = accelerator.process_index if accelerator is not None else 0
        self.size = accelerator.num_processes if accelerator is not None else 1
        self.device = accelerator.device if accelerator is not None else None
        self.is_main = self.rank == 0
        """Whether this is the process that prints."""
        self._asked = 0.0

    @classmethod
    def sharing(cls, rank: int, size: int, device: torch.device) -> Processes:
        """The processes over which a model's weights are sharded, all of the run."""
        if size != torch.distributed.get_world_size():
            raise ValueError(
                f"The model is sharded over {size} of {torch.distributed.get_world_size()} processes: expected all of "
                "them. Make the mesh of all processes."
            )
        processes = cls()
        processes.rank, processes.size, processes.device, processes.is_main = rank, size, device, rank == 0
        return processes

    def as_one(self) -> Processes:
        """As if there were one process: all do the same, and only the main one prints."""
        one = Processes()
        one.is_main = self.is_main
        return one

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
        own = error is not None and not isinstance(error, _OtherFailed)
        try:
            if own:
                self._tell()
            failures = [None] if self.size == 1 else self.gather(f"{type(error).__name__}: {error}" if own else None)
            if any(failures):
                self._forget()
        except RuntimeError:
            if own and error is not None:  # the others are gone already: the cause says more than the lost connection
                raise error from None
            raise
        if own and error is not None:
            raise error
        for rank, failure in enumerate(failures):
            if failure is not None:
                raise RuntimeError(f"Process {rank} of {self.size} failed, so all stop. It said: {failure}")

    def check(self) -> None:
        """Stop a long part of :meth:`together` soon after another process failed in it; cheap enough for a batch."""
        now = time.monotonic()
        if self.size > 1 and now - self._asked >= ASK_AFTER:
            self._asked = now
            try:
                failed = self._store().check([FAILED])
            except RuntimeError:  # its host has ended, which the next collective reports better
                failed = False
            if failed:
                raise _OtherFailed

    def _tell(self) -> None:
        if self.size > 1:
            self._store().set(FAILED, "1")

    def _forget(self) -> None:
        # every process runs this, after all have stopped asking and before any can ask again
        if self.size > 1:
            self._store().delete_key(FAILED)
            self.gather(None)

    def _store(self) -> Any:
        # a collective cannot be looked at without waiting for it; the store that the processes met at can
        return torch.distributed.distributed_c10d._get_default_store()

    def _on_device(self, tensor: Tensor) -> Tensor:
        # NCCL reduces GPU tensors only, wherever the sums were made
        return tensor if self.device is None else tensor.to(self.device).contiguous()


def rank_and_size() -> tuple[int, int]:
    """Of this process in torch's default group, which must be there."""
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


class _OtherFailed(Exception):
    """Raised in a process because another one failed; never seen outside."""
