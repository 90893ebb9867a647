"""Relative sharpness: the mean rise of the loss under noise in proportion to every weight, by forward passes only."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from hf_pacgen.config import RelativeSharpnessConfig
from hf_pacgen.config.settings import grid
from hf_pacgen.curvature.ascent import coarse_weights
from hf_pacgen.curvature.operators import MeanLoss
from hf_pacgen.data.objective import Objective
from hf_pacgen.maths.counter_rng import stream_key
from hf_pacgen.maths.student import interval_stderr
from hf_pacgen.measures.session import DataOptions, Tick, measure, session
from hf_pacgen.noise.perturbation import Perturbation
from hf_pacgen.noise.perturbed import noisy_loss
from hf_pacgen.results.relative_sharpness import RelativeSharpness, headline

ENOUGH = 8  # batches, or further draws of them, from which a spread can be told
LEVELS = (0.03, 0.1, 0.3, 1.0)


@measure
def relative_sharpness(
    model: nn.Module,
    data: Any,
    levels: Sequence[float] = LEVELS,
    *,
    config: RelativeSharpnessConfig = RelativeSharpnessConfig(),
    **options: Unpack[DataOptions],
) -> RelativeSharpness:
    """E_z L̂(w ⊙ (1 + s z)) - L̂(w) by level s: the rise of the mean loss over all loss units, z uniform in [-1, 1].

    To second order it is s²/6 Σ H_ii w_i², which does not change when layers are rescaled against each other.

    Each batch has a z of its own, the same at all levels and for all models: the stream of a parameter follows from the
    seed, the batch's number and the parameter's name, so models and levels share their noise (common random numbers).
    The losses at +z and -z are averaged, which cancels the slope, and held against the loss of the same batch at w.
    By default a random quarter of the batches has noise: 2¼ forward passes over the data, and the time to draw.
    Standard errors are from the spread between batches, so they cover the noise, the quarter and the subset of
    ``max_examples``; with few degrees of freedom they are as much larger as Student's t is wider.  The weights are
    never written to.

    Args:
        model, data, options: as for :func:`hf_pacgen.pacgen`.
        levels: s > 0; all trainable weights have noise.
        config: number of draws, subset, seed.

    Raises:
        ValueError: a level that is not positive and finite, a loss that is not finite with the noise, and what
            :func:`hf_pacgen.pacgen` raises.

    Source: the multiplicative noise of Dziugaite et al. 2020, arXiv 2010.11924 (there normal, at a fixed rise).
    """
    began, chosen = time.perf_counter(), grid(levels, "levels")
    with session(model, data, config, stage="relative sharpness", whole=True, **options) as (objective, tick):
        noise = Perturbation(objective.parameters)  # uniform
        try:
            found = _Pairs(objective, noise, chosen, config, tick).run()
        finally:
            noise.restore()
    return dataclasses.replace(found, config=config.to_dict(), seconds=time.perf_counter() - began)


@dataclass
class _Rise:
    """The rise of one batch's loss at every level over the draws so far, in Welford's running sums."""

    loss: float  # at w, summed over the units
    units: float
    mean: Tensor  # rise of a unit, by level
    squares: Tensor  # Σ (rise - mean)²
    draws: int = 0


@dataclass(frozen=True)
class _Skipped:
    """The batches without noise, by their numbers: all but a random one of every ``stride`` that follow each other."""

    stride: int
    seed: int

    def __contains__(self, index: object) -> bool:
        block, place = divmod(int(index), self.stride)  # type: ignore[call-overload]
        return bool(stream_key(self.seed, "relative sharpness batch", block) % self.stride != place)


class _Pairs:
    """Draws the noise in antithetic pairs, and keeps the rise of every batch by the batch's number."""

    def __init__(
        self,
        objective: Objective,
        noise: Perturbation,
        levels: list[float],
        config: RelativeSharpnessConfig,
        tick: Tick,
    ) -> None:
        self.objective, self.noise, self.levels, self.config, self.tick = objective, noise, levels, config, tick
        self.rises: dict[int, _Rise] = {}
        self.draws = self.forward = 0

    def run(self) -> RelativeSharpness:
        """Draw as often as the settings ask for, or as the number of batches makes it necessary."""
        batches = self.objective.batches
        over = MeanLoss(self.objective, self.tick)
        if self.config.draws is not None:
            self._go_over(over, self.config.draws)
        else:
            with batches.processes.together():
                own = batches.count()
                mine = sum(1 for _ in batches) if own is None else own
            count = int(batches.processes.sum_(torch.tensor([mine], dtype=torch.float64)).item())
            # as many batches as a spread needs; to see all of them once would hide how much of it is the noise
            stride = next((k for k in (4, 3, 2) if count >= k * ENOUGH), 1)
            if stride > 1:
                self.draws = 1
                over.over_batches(self._add, skipped=_Skipped(stride, self.config.seed))
            if stride == 1 or self._total(len(self.rises)) < ENOUGH // 2:  # of those chosen, too few have loss units
                self.rises.clear()
                self._go_over(over, 1 + -(-ENOUGH // count))
        return self._result(over)

    def _go_over(self, over: MeanLoss, draws: int) -> None:
        self.draws = draws
        for _ in range(draws):
            over.over_batches(self._add)

    def _add(self, batch: Any, index: int) -> tuple[float, float]:
        # one more draw for a batch: its loss at w, and its units
        if index not in self.rises:
            self.noise.restore()  # from the batch before
            zeros = torch.zeros(len(self.levels), dtype=torch.float64)
            self.rises[index] = _Rise(*self._loss(batch, index), zeros, zeros.clone())
        seen = self.rises[index]
        seen.draws += 1
        if seen.units:
            rise = torch.tensor([self._pair(batch, index, s, seen.draws) for s in self.levels], dtype=torch.float64)
            rise = (rise - seen.loss) / seen.units
            before = rise - seen.mean
            seen.mean += before / seen.draws
            seen.squares += before * (rise - seen.mean)
        return seen.loss, seen.units

    def _pair(self, batch: Any, index: int, level: float, draw: int) -> float:
        # u_i = level |w_i| z, which is distributed as level w_i z
        self.noise.draw(lambda _, w: w.abs(), self.config.seed, "relative sharpness", draw, index, factor=level)
        self.noise.apply()
        total, _ = self._loss(batch, index)
        self.noise.mirror()
        self.noise.apply()
        return (total + self._loss(batch, index)[0]) / 2

    def _loss(self, batch: Any, index: int) -> tuple[float, float]:
        self.forward += 1
        return noisy_loss(self.objective, self.noise, batch, index, remedy="Or take lower levels.")

    def _total(self, value: float) -> float:
        return float(self.objective.batches.processes.sum_(torch.tensor([value], dtype=torch.float64)).item())

    def _result(self, over: MeanLoss) -> RelativeSharpness:
        rises = [rise for rise in self.rises.values() if rise.units]
        means = self._sum([rise.units * rise.mean for rise in rises]) / over.units
        stderrs = self._stderrs(rises, means, over)
        at, values = headline(self.levels), means.tolist()
        return RelativeSharpness(
            relative_sharpness=values[at],
            relative_sharpness_stderr=stderrs[at],
            level=self.levels[at],
            levels=tuple(self.levels),
            means=tuple(values),
            stderrs=tuple(stderrs),
            loss=self._total(sum(rise.loss for rise in rises)) / over.units,
            draws=self.draws,
            num_batches=int(self._total(len(rises))),
            num_examples=over.examples,
            num_units=over.units,
            num_forward=int(self._total(self.forward)),
            status=tuple(self._status(values, stderrs)),
        )

    def _stderrs(self, rises: list[_Rise], means: Tensor, over: MeanLoss) -> list[float | None]:
        """√ of the variance of Σ n_b rise_b/Σ n_b: of the draws where all data was seen, else between batches too."""
        batches = self._total(len(rises))
        further = self._total(sum(rise.draws - 1 for rise in rises))
        between = self._sum([(rise.units * (rise.mean - means)) ** 2 for rise in rises]) / over.units**2
        within = self._sum([r.units**2 * r.squares / max(r.draws - 1, 1) / r.draws for r in rises]) / over.units**2
        # what a small sample says of a variance is uncertain
        between *= _widened(batches - 1) * batches / max(batches - 1, 1)
        within *= _widened(further)
        if further:  # the spread between batches is then known apart from the noise, and counts as far as data is left
            left = 1 - self._share(over)
            variance = within + left * (between - within).clamp(min=0) if left else within
        else:
            variance = between
        known = variance.isfinite().tolist()
        return [math.sqrt(v) if good else None for v, good in zip(variance.tolist(), known, strict=True)]

    def _share(self, over: MeanLoss) -> float:
        """How much of the data given was seen."""
        batches = self.objective.batches
        if batches.max_examples is None or over.examples < batches.max_examples:
            return 1.0
        # to count a stream would take a pass over it
        return over.examples / len(batches.data) if batches.indices is not None else 0.0

    def _sum(self, values: list[Tensor]) -> Tensor:
        zeros = torch.zeros(len(self.levels), dtype=torch.float64)
        return self.objective.batches.processes.sum_(sum(values, zeros))

    def _status(self, means: list[float], stderrs: list[float | None]) -> Iterator[str]:
        yield from coarse_weights(self.objective)
        if None in stderrs:
            yield (
                "The standard errors of the relative sharpness are unknown: too few batches show no spread. "
                "Use smaller batches or more data."
            )
            return
        pairs = zip(self.levels, means, stderrs, strict=True)
        noisy = [f"{level:g}" for level, mean, stderr in pairs if stderr is not None and stderr > 0.5 * abs(mean)]
        if noisy:
            yield (
                f"The relative sharpness is noisy at level{'s' * (len(noisy) > 1)} {', '.join(noisy)}: its standard "
                "error is over half of it. Use more examples, or more draws."
            )


def _widened(freedom: float) -> float:
    """By how much a variance of so few degrees of freedom is widened: endlessly where they say next to nothing."""
    return interval_stderr(1.0, int(freedom)) ** 2 if freedom > 2 else math.inf
