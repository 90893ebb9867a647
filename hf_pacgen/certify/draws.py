"""The noisy empirical error, by draws of the noise: every batch has a draw of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.certify.error_rate import ErrorRate
from hf_pacgen.certify.posterior import Posterior
from hf_pacgen.curvature.displacement import SavedWeights, TensorDirection
from hf_pacgen.data.objective import Objective
from hf_pacgen.distributed.processes import send_to_device
from hf_pacgen.maths.counter_rng import stream_key
from hf_pacgen.maths.pac_bayes import effective_draws

__all__ = ["NoiseStream", "NoisyErrors", "planned_passes"]

CACHE_BYTES = 1 << 29
"""Batches are kept in memory up to this size, instead of being made anew in every pass."""
MOST_LOOKS = 6
MOST_DRAWN, BLOCK_ELEMENTS = 64, 1 << 20
"""Draws made at a time, and the numbers in them, at most."""


class NoisyErrors:
    """Errors of a noisy model, batch after batch, each under its own independent draw.

    The noise of a draw depends on (seed, key, batch) alone, so that processes that share the batches draw what one
    process would.

    Args:
        objective: inspected, with the data.
        rate: the error of each example.
        saved: a copy of the certified weights, from which they are displaced.
        seed: of the noise.
    """

    def __init__(self, objective: Objective, rate: ErrorRate, saved: SavedWeights, *, seed: int) -> None:
        self.objective, self.rate, self.saved, self.seed = objective, rate, saved, seed
        self._cache: list[tuple[int, Any]] | None = None
        self._fits = True

    def batches(self) -> Sequence[tuple[int, Any]] | Any:
        """This process's batches with their numbers, from memory where they fit."""
        if self._cache is None and self._fits:
            kept: list[tuple[int, Any]] = []
            size = 0
            for index, batch in self.objective.batches:
                size += sum(t.numel() * t.element_size() for t in _tensors(batch))
                self._fits = size <= CACHE_BYTES
                if not self._fits:
                    return self.objective.batches
                kept.append((index, batch))
            self._cache = kept
        return self.objective.batches if self._cache is None else self._cache

    def mean(
        self, posterior: Posterior, *key: str | int, stride: int = 1, tick: Callable[[], Any] = lambda: None
    ) -> tuple[float, list[int]]:
        """Mean error over one pass, with a draw for every batch, and the sizes of the batches.

        Args:
            posterior: of the noise.
            key: names the draws; other keys give independent ones.
            stride: go over every ``stride``-th batch only.
        """
        processes = self.objective.batches.processes
        stream = NoiseStream(posterior, self.seed, "certificate", *key)
        total = torch.zeros(1, dtype=torch.float64)
        sizes: list[int] = []
        with processes.together(), torch.no_grad():
            try:
                for index, batch in self.batches():
                    if index % stride == 0:
                        self.displace(posterior, stream[index])
                        errors = self.rate(send_to_device(batch, self.objective.device), index)
                        total += errors.sum()
                        sizes.append(errors.numel())
                        tick()
            finally:
                self.saved.restore()
        processes.sum_(total)
        sizes = [size for part in processes.gather(sizes) for size in part]
        return total.item() / max(sum(sizes), 1), sizes

    def displace(self, posterior: Posterior, noise: Mapping[str, Tensor]) -> None:
        """Set the weights to the posterior's means plus noise u."""
        moved = {name: u + (posterior.means[name] - self.saved.copy[name]) for name, u in noise.items()}
        self.saved.displace([(TensorDirection(moved), 1.0)])


class NoiseStream:
    """Numbered independent draws of u, by parameter name.

    Draw i is a function of (seed, key, i) alone, so that processes that share the numbers draw what one would.  Small
    models' draws are made in blocks, which costs a tenth.
    """

    def __init__(self, posterior: Posterior, *key: str | int, most: int = MOST_DRAWN) -> None:
        self.key = key
        self.noises = {name: posterior.noise(name) for name in posterior.means}
        self.means = posterior.means
        self.block = max(1, min(most, BLOCK_ELEMENTS // max(1, sum(m.numel() for m in self.means.values()))))
        self._number: int | None = None
        self._draws: dict[str, Tensor] = {}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        number, row = divmod(index, self.block)
        if number != self._number:
            generator = torch.Generator().manual_seed(stream_key(*self.key, number) & (2**63 - 1))
            for name, noise in self.noises.items():
                shape = (self.block, *self.means[name].shape)
                self._draws[name] = noise.sample(generator, shape=shape, device=self.means[name].device)
            self._number = number
        return {name: draws[row] for name, draws in self._draws.items()}


def planned_passes(draws: int, sizes: Sequence[int]) -> list[int]:
    """At which numbers of passes the draws are looked at: doubling, up to the pass that reaches ``draws``.

    The plan depends on the number of draws and the sizes of the batches only, never on an error, so that each look
    may be given an equal part of δ.

    >>> planned_passes(10_000, [8] * 1500)
    [1, 2, 4, 7]
    """
    last = max(1, -(-draws // max(1, int(effective_draws(sizes)))))
    looks = [last]
    while looks[0] > 1 and len(looks) < MOST_LOOKS:
        looks.insert(0, (looks[0] + 1) // 2)
    return looks


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, (list, tuple)):
        for item in batch:
            yield from _tensors(item)
