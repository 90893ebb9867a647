"""The noisy empirical error: every batch meets a draw of the noise of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, TypeVar

import torch
from torch import Tensor

from hf_pacgen.certify.error_rate import ErrorRate
from hf_pacgen.certify.posterior import Posterior
from hf_pacgen.certify.prints import leaves
from hf_pacgen.curvature.displacement import SavedWeights, TensorDirection
from hf_pacgen.data.objective import Objective
from hf_pacgen.distributed.processes import send_to_device
from hf_pacgen.maths.counter_rng import stream_key
from hf_pacgen.maths.pac_bayes import effective_draws

T = TypeVar("T")

CACHE_BYTES = 1 << 29  # batches are kept in memory up to this size, instead of being made anew in every pass
MOST_LOOKS = 6
MOST_DRAWN, BLOCK_ELEMENTS = 64, 1 << 20  # draws made at a time, and the numbers in them, at most


@dataclass(eq=False)
class NoisyErrors:
    """Errors of a noisy model, batch after batch, each under its own independent draw.

    The weights are displaced from the copy in ``saved``; ``tick`` is called after every batch.
    """

    objective: Objective
    rate: ErrorRate
    saved: SavedWeights
    seed: int
    tick: Callable[[], Any] = lambda: None
    _cache: list[tuple[int, Any]] | None = None
    _fits: bool = True  # the batches into the cache, as far as is known

    def batches(self) -> Iterable[tuple[int, Any]]:
        """This process's batches with their numbers: a list in memory where they fit."""
        if self._cache is None and self._fits:
            kept, size = [], 0
            # a pass over the batches may tokenize, load images and collate: more than a small model's forward
            for index, batch in self.objective.batches:
                size += sum(t.numel() * t.element_size() for _, t in leaves(batch) if isinstance(t, Tensor))
                self._fits = size <= CACHE_BYTES
                if not self._fits:  # once too large, it is not tried again
                    return self.objective.batches
                kept.append((index, batch))
            self._cache = kept
        return self.objective.batches if self._cache is None else self._cache

    @torch.no_grad()
    def visit(self, what: Callable[[int, Any], T], *, stride: int = 1) -> list[T]:
        """``what(index, batch)`` of every ``stride``-th batch of all processes, in the order of the batches."""
        processes = self.objective.batches.processes
        with processes.together():
            found = [(index, what(index, batch)) for index, batch in self.batches() if index % stride == 0]
        # sorted, so that any number of processes adds up the same numbers in the same order
        return [value for _, value in sorted(chain(*processes.gather(found)), key=itemgetter(0))]

    def mean(self, posterior: Posterior, *key: str | int, stride: int = 1) -> tuple[float, list[int]]:
        """Mean error over one pass, and the sizes of the batches; other keys give independent draws."""
        found = self.errors(posterior, *key, stride=stride)
        sizes = [size for _, size in found]
        return sum(errors for errors, _ in found) / max(sum(sizes), 1), sizes

    def errors(self, posterior: Posterior, *key: str | int, stride: int = 1) -> list[tuple[float, int]]:
        """Of every batch of a pass, under a draw of its own, the sum of its errors and its size."""
        stream = NoiseStream(posterior, self.seed, "certificate", *key)

        def errors_of(index: int, batch: Any) -> tuple[float, int]:
            self.displace(posterior, stream[index])
            errors = self.rate(send_to_device(batch, self.objective.device), index)
            self.tick()
            return errors.sum().item(), errors.numel()

        try:
            return self.visit(errors_of, stride=stride)
        finally:
            self.saved.restore()

    def displace(self, posterior: Posterior, noise: Mapping[str, Tensor]) -> None:
        """Set the weights to the posterior's means plus noise u."""
        moved = {name: u + (posterior.means[name] - self.saved.copy[name]) for name, u in noise.items()}
        self.saved.displace([(TensorDirection(moved), 1.0)])


class NoiseStream:
    """Numbered independent draws of u, by parameter name."""

    # draw i is a function of (key, i) alone, so that processes that share the numbers draw what one would
    def __init__(self, posterior: Posterior, *key: str | int, most: int = MOST_DRAWN) -> None:
        self.key, self.means = key, posterior.means
        self.noises = {name: posterior.noise(name) for name in posterior.means}
        # a small model's draws are made in blocks, which costs a tenth
        self.block = max(1, min(most, BLOCK_ELEMENTS // max(1, sum(m.numel() for m in self.means.values()))))
        self._number: int | None = None
        self._draws: dict[str, Tensor] = {}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        number, row = divmod(index, self.block)
        if number != self._number:
            # a block, not a draw, has a generator of its own
            generator = torch.Generator().manual_seed(stream_key(*self.key, number) & (2**63 - 1))
            for name, noise in self.noises.items():
                shape = (self.block, *self.means[name].shape)
                self._draws[name] = noise.sample(generator, shape=shape, device=self.means[name].device)
            self._number = number
        return {name: draws[row] for name, draws in self._draws.items()}


def planned_passes(draws: int, sizes: Sequence[int]) -> list[int]:
    """At which numbers of passes the draws are looked at: doubling, up to the pass that reaches ``draws``.

    The plan never depends on an error, so that each look may be given an equal part of δ.

    >>> planned_passes(10_000, [8] * 1500)
    [1, 2, 4, 7]
    """
    looks = [max(1, -(-draws // max(1, int(effective_draws(sizes)))))]
    while looks[0] > 1 and len(looks) < MOST_LOOKS:
        looks.insert(0, (looks[0] + 1) // 2)
    return looks
