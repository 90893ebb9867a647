"""Passes over data, each under one draw of the noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from hf_pacgen.distributed.processes import send_to_device
from hf_pacgen.predictions.levels import Noise
from hf_pacgen.predictions.reading import PlaceReader, Places
from hf_pacgen.promises.visit import Visit

__all__ = ["draw_over", "go_over", "steady"]

T = TypeVar("T")


def steady(visit: Visit) -> list[str]:
    """See that every pass gives the same batches; a sentence where they had to be kept for that."""
    with visit.batches.processes.together():
        _, note = visit.batches.compare_passes()
    return [] if note is None else [note]


def go_over(visit: Visit, reader: PlaceReader, look: Callable[[int, Places], T]) -> list[T]:
    """``look(index, places)`` of every batch of all processes, in their order, in one pass."""

    def read(index: int, batch: Any) -> T:
        return look(index, reader.places(send_to_device(batch, visit.device), index))

    return visit.each(read)


def draw_over(
    visit: Visit, reader: PlaceReader, noise: Noise, seeds: Iterable[int], look: Callable[[int, Places], object]
) -> None:
    """A pass under each draw; without noise one pass tells all."""
    if noise.is_silent:
        go_over(visit, reader, look)
        return
    for seed in seeds:
        with noise.on(visit.model, seed):
            go_over(visit, reader, look)
