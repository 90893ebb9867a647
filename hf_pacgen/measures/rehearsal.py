"""One batch of a score, done for its passes and its time: what the others take is known then."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_pacgen.config import Estimator, HVPMethod, ScoreConfig
from hf_pacgen.curvature.checks import require_unchanged, weights_checksum
from hf_pacgen.curvature.diagonal import estimate_diagonal
from hf_pacgen.curvature.examination import examine_for
from hf_pacgen.curvature.hvp import choose_method
from hf_pacgen.curvature.lipschitz import estimate_lipschitz
from hf_pacgen.curvature.pass_counts import PassCounter, Passes, product_passes, rho_passes, sweeps_of
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.contents import batch_tensors
from hf_pacgen.measures.pacgen import finish
from hf_pacgen.measures.session import session
from hf_pacgen.model.state import unwrap

__all__ = ["Rehearsal", "rehearse"]


@dataclass(frozen=True)
class Part:
    """Passes and seconds."""

    passes: Passes
    seconds: float

    def __sub__(self, other: Part) -> Part:
        return Part(self.passes - other.passes, self.seconds - other.seconds)


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What one batch has shown.

    Attributes:
        checks: of the first batch, with the session.  direction: of ρ, one of its displacements.
        begin, batch, end: of the diagonal: what comes first, each batch of the first pass, and what comes last.
        estimator, method: those that are used in the end.
        elements: of the batch's tensors.
        low: whether the model computes in low precision.
        counted: whether loss units are known by the loss alone.
        notes: of the checks.
    """

    checks: Part
    direction: Part
    begin: Part
    batch: Part
    end: Part
    estimator: Estimator
    method: HVPMethod | None
    elements: int
    low: bool
    counted: bool
    notes: tuple[str, ...]

    def diagonal(self, config: ScoreConfig, batches: int) -> Passes:
        """Passes of the diagonal over so many batches, but for the exact one, whose rows reach one tensor each."""
        return self.begin.passes + self.batch.passes * batches + self._later(config) * self._further(config, batches)

    def repeats(self, config: ScoreConfig, batches: int) -> Passes:
        """Passes of ρ whose steps prove too long, if other displacements are like the one that was tried."""
        if not config.lipschitz_directions:
            return Passes()
        once = dataclasses.replace(config, lipschitz_directions=1)
        plain = rho_passes(once, self.method, batches, counted=self.counted)
        return (self.direction.passes - plain) * config.lipschitz_directions

    def seconds(self, config: ScoreConfig, batches: int, *, processes: int, scale: float, fetch: float) -> float:
        """Of a score over so many batches, shared out over processes that all have the weights.

        Args:
            scale: of the mean batch, to the one that was timed.
            fetch: seconds that making a batch takes.
        """
        mine, further = -(-batches // processes), -(-self._further(config, batches) // processes)
        later = self.batch.seconds * self._later(config).cost / max(self.batch.passes.cost, 1)
        directions = -(-config.lipschitz_directions // processes)
        of_batches = scale * (mine * self.batch.seconds + further * later) + fetch * (mine + further)
        fixed = self.checks.seconds + self.begin.seconds + self.end.seconds
        return fixed + directions * self.direction.seconds * scale + of_batches

    def _further(self, config: ScoreConfig, batches: int) -> int:
        settled = dataclasses.replace(config, estimator=self.estimator, likelihood=None)
        return (sweeps_of(settled, batches) - 1) * batches

    def _later(self, config: ScoreConfig) -> Passes:
        """Of a batch in a pass after the first."""
        if not self.estimator.facts.needs_products or self.method is None:
            return self.batch.passes
        quiet = self.estimator.facts.needs_labels and not config.passes
        return self.batch.passes if quiet else product_passes(self.method)


def rehearse(model: nn.Module, data: Any, config: ScoreConfig, options: Any) -> Rehearsal:
    """Do the checks, one displacement of ρ and the diagonal of one batch, twice; the model is left as it was found.

    Raises:
        ValueError, TypeError: what the score itself would refuse.
    """
    counter, stamps = PassCounter(unwrap(model)), list[Part]()

    def now() -> Part:
        return Part(counter.passes, time.perf_counter())

    began = now()
    with counter.watching(), session(model, data, config, derivatives=True, **options) as (objective, _):
        with WeightSpace(objective) as space:
            before = weights_checksum(space)
            examine_for(space, config)
            checks = now() - began
            began, smoothness = now(), None
            if config.lipschitz_directions:
                smoothness = estimate_lipschitz(space, dataclasses.replace(config, lipschitz_directions=1))
            direction = now() - began
            if objective.first is None:
                raise LookupError("The objective was not inspected: a session does that.")
            batch, given = objective.first[1], objective.batches
            # the second of two equal ones shows what a batch takes once everything is warm
            objective.batches = Batches([batch, batch], model=objective.model)
            began = now()
            try:
                once = dataclasses.replace(config, passes=1)
                diagonal = estimate_diagonal(space, once, tick=lambda: stamps.append(now()))
                end = now()
            finally:
                objective.batches = given
            method = diagonal.hvp_method
            if method is None and config.lipschitz_directions:
                method = choose_method(space, config.hvp)
        require_unchanged(space, before)
        finish(space, config, diagonal, smoothness)
        last = now()
        each = stamps[1] - stamps[0]
        return Rehearsal(
            checks=checks,
            direction=direction,
            begin=(stamps[0] - began) - each,
            batch=each,
            end=Part(Passes(), (last - end).seconds + (end - stamps[1]).seconds),
            estimator=Estimator(diagonal.estimator),
            method=method,
            elements=sum(t.numel() for t in batch_tensors(batch)),
            low=objective.low_precision,
            counted=objective.loss_fn is not None,
            notes=(*objective.notes, *diagonal.notes),
        )
