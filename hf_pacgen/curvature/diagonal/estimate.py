"""The diagonal of the Hessian, by whichever estimator: one pass over the batches for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.config import Estimator, HVPMethod, Likelihood, ScoreConfig
from hf_pacgen.curvature.checkpoint import Checkpoint
from hf_pacgen.curvature.diagonal.blend import blend_, blend_share
from hf_pacgen.curvature.diagonal.exact import Exact
from hf_pacgen.curvature.diagonal.gauss_newton import GaussNewton
from hf_pacgen.curvature.diagonal.hutchinson import Hutchinson
from hf_pacgen.curvature.diagonal.sampled_labels import SampledLabels, find_likelihood, refuse_likelihood
from hf_pacgen.curvature.diagonal.sums import DiagonalSums, pooled_trace
from hf_pacgen.curvature.diagonal.through_outputs import EXACT, find_outputs
from hf_pacgen.curvature.examination import examine
from hf_pacgen.curvature.operators import Tick
from hf_pacgen.curvature.weight_space import Vector, WeightSpace
from hf_pacgen.data.losses import BatchLoss, LossKind, require_units
from hf_pacgen.data.objective import LossChanged
from hf_pacgen.maths.score_errors import DiagonalSample, Part
from hf_pacgen.results.diagonal import DiagonalEstimate

__all__ = ["estimate_diagonal"]

ENOUGH = 8
"""Batches and passes, at least, whose spread is known well enough to give a standard error."""
MISSED, SURE = 0.5, 3.0
"""Part of the trace that the Gauss-Newton part may miss before it is left out, and standard errors that show it."""


@dataclass
class _Parts:
    """What an estimator sums; the blend has two of them.

    Attributes:
        gradient_passes: passes in which labels are sampled.
        counts: Σ loss, units and examples of the first pass, then the numbers of HVPs and of gradients, and of the
            batches with units in the first pass.
    """

    exact: Exact | None = None
    probes: Hutchinson | None = None
    gradients: GaussNewton | None = None
    gradient_passes: int = 0
    counts: Tensor = field(default_factory=lambda: torch.zeros(6, dtype=torch.float64))

    @classmethod
    def of(cls, estimator: Estimator, space: WeightSpace, config: ScoreConfig) -> _Parts:
        """The parts of an estimator: the place where a new one joins."""
        if estimator is Estimator.EXACT:
            return cls(exact=Exact(space))
        if estimator is Estimator.HUTCHINSON:
            return cls(probes=Hutchinson(space, config))
        if estimator is Estimator.GAUSS_NEWTON:
            quiet = GaussNewton(space, config, elementwise=config.standard_error)
            return cls(gradients=quiet, gradient_passes=config.passes or ENOUGH)
        if estimator is Estimator.BLEND:  # quiet as it is, one pass of gradients will do, unless there are few batches
            passes = 1 if config.passes else ENOUGH
            return cls(probes=Hutchinson(space, config), gradients=GaussNewton(space, config), gradient_passes=passes)
        raise ValueError(f"The estimator {estimator!r} has no parts: say in _Parts.of what it sums.")

    def tensors(self) -> dict[str, Tensor]:
        """All sums by name, to be saved, or reduced over processes after the last batch."""
        parts = (self.exact, self.probes, self.gradients)
        named = {f"{part.kind}.{name}": t for part in parts if part is not None for name, t in part.tensors().items()}
        return named | {"counts": self.counts}


def estimate_diagonal(
    space: WeightSpace, config: ScoreConfig, *, tick: Tick = lambda: None, checkpoint: Checkpoint | None = None
) -> DiagonalEstimate:
    """Estimate the pooled Hessian's diagonal.

    Args:
        space: the weights, which are left as found.
        config: estimator, HVP method, passes, seed, whether entries get standard errors.
        tick: called after every batch.
        checkpoint: started on the sums as far as they are known, and saves them.

    Raises:
        ValueError: ``exact`` on a model with too many parameters, or a batch whose gradient is not finite, or data
            without a single loss unit.
        LossChanged: the loss of a later batch is another, and the work cannot begin anew.
    """
    try:
        return _estimated(space, config, tick, checkpoint)
    except LossChanged:
        # what one process found the others do not know, and a checkpoint holds sums of the other kind
        if space.objective.batches.processes.size > 1 or checkpoint is not None:
            raise
        if config.likelihood is not None:
            raise
        space.restore()
        space.objective.kind = LossKind.OTHER
        return _estimated(space, config, tick, checkpoint, drawn=False)


def _estimated(
    space: WeightSpace, config: ScoreConfig, tick: Tick, checkpoint: Checkpoint | None, *, drawn: bool = True
) -> DiagonalEstimate:
    processes = space.objective.batches.processes
    with processes.together():
        way = _supported(space, config, drawn=drawn)
        estimator, notes = way.estimator, way.notes
    if estimator.facts.needs_products and HVPMethod(config.hvp) not in space.resolved:
        examine(space, config.hvp)  # nobody has asked for products, which take the place of what the loss does not have
    with processes.together():
        parts = _Parts.of(estimator, space, config)
        if parts.gradients is not None:
            parts.gradients.outputs, parts.gradients.likelihood = way.outputs, way.likelihood
    if checkpoint is not None:
        checkpoint.start(parts.tensors())
    sweep, sweeps = 0, 1 if parts.exact is not None else config.passes or 1
    while sweep < sweeps:
        with processes.together():
            for index, batch in _recorded(space, parts, sweep, tick, checkpoint):
                _add(space, parts, batch, index, sweep)
        sweep += 1
        if sweep == 1 and parts.exact is None and config.passes is None:
            batches = int(processes.sum_(parts.counts[5:].clone()))
            sweeps = -(-ENOUGH // max(1, batches))
    with processes.together():
        if checkpoint is not None:
            checkpoint.save(parts.tensors())
    for tensor in parts.tensors().values():
        processes.sum_(tensor)
    loss, units, examples, num_hvps, num_gradients, _ = parts.counts.tolist()
    require_units(units)
    found = _finish(parts, whole=not space.objective.batches.is_subset)
    return DiagonalEstimate(
        values=found.values,
        stderr=found.stderr if config.standard_error else None,
        trace=found.trace,
        trace_stderr=found.trace_stderr,
        loss=loss / units,
        num_units=units,
        num_examples=int(examples),
        estimator=estimator,
        hvp_method=parts.probes.product.method if parts.probes is not None else None,
        num_hvps=int(num_hvps),
        num_gradients=int(num_gradients),
        blend=found.share,
        notes=(*notes, *found.notes),
        sample=found.sample,
    )


@dataclass(frozen=True)
class _Way:
    """The estimator that the loss allows, what to say of it, and how its Gauss-Newton part is had.

    ``outputs`` are those that it goes through, ``likelihood`` is that from which targets are drawn; neither for the
    cross-entropy that the loss was recognized as.
    """

    estimator: Estimator
    notes: tuple[str, ...] = ()
    outputs: tuple[str, ...] | None = None
    likelihood: SampledLabels | None = None


def _supported(space: WeightSpace, config: ScoreConfig, *, drawn: bool) -> _Way:
    """How the loss can be estimated; ``drawn`` says whether targets may be drawn."""
    kind, guard, estimator = space.objective.kind, space.objective.guard, Estimator(config.estimator)
    if not estimator.facts.needs_labels:
        return _Way(estimator)
    known = kind.facts is not None
    if known and config.likelihood in (None, Likelihood.SOFTMAX):
        return _Way(estimator)
    likelihood = find_likelihood(space, config.likelihood) if drawn else None
    if config.likelihood is not None and likelihood is None:
        raise refuse_likelihood(space, config.likelihood)
    if likelihood is not None:
        said = f"targets are drawn from the likelihood {likelihood.reading.likelihood.value!r}"
        guard.add("Gauss-Newton", f"{said} of the outputs {', '.join(likelihood.reading.outputs)}")
        if not likelihood.has_rest:
            return _Way(estimator, likelihood=likelihood)
        note = (
            f"A part of the loss ({likelihood.beside:.0%} of its gradient, such as a router's auxiliary loss) does not "
            f"come through the outputs {', '.join(likelihood.reading.outputs)}: in the Gauss-Newton part of the "
            "diagonal it is Hutchinson's."
        )
        return _Way(estimator, (note,), likelihood=likelihood)
    found = find_outputs(space)
    if found is None:
        note = (
            f"The estimator is hutchinson instead of {estimator.value}: Gauss-Newton needs a cross-entropy on the "
            f"model's logits, or a loss of its outputs with a second derivative, and this is {kind.value}."
        )
        return _Way(Estimator.HUTCHINSON, (note,))
    outputs, beside = found
    guard.add("Gauss-Newton", f"through the outputs {', '.join(outputs)}")
    if beside <= EXACT:
        return _Way(estimator, outputs=outputs)
    note = (
        f"A part of the loss ({beside:.0%} of its gradient, such as a router's auxiliary loss) does not come through "
        f"the outputs {', '.join(outputs)}, and is missing in the Gauss-Newton part of the diagonal."
    )
    return _Way(estimator, (note,), outputs=outputs)


def _add(space: WeightSpace, parts: _Parts, batch: Any, index: int, sweep: int) -> None:
    """Add a batch to every part; weights are back at w whenever a loss is taken there."""
    true: BatchLoss | None = None
    if parts.exact is not None:
        before = parts.exact.num_hvps
        finite, true = parts.exact.add(batch, index)
        parts.counts[3] += parts.exact.num_hvps - before
        _check_gradient(finite, index)
    if parts.gradients is not None and sweep < parts.gradient_passes:
        hvps, gradients = parts.gradients.num_hvps, parts.gradients.num_gradients
        finite, true = parts.gradients.add(batch, index, sweep)
        _check_gradient(finite, index)
        parts.counts[3] += parts.gradients.num_hvps - hvps
        parts.counts[4] += parts.gradients.num_gradients - gradients
    if sweep == 0:
        if true is None:
            space.restore()
            with torch.no_grad():
                true = space.objective.loss(batch, index)
        parts.counts[:3] += torch.tensor(
            [true.total.item(), true.units, space.objective.batches.examples_in(index, batch)], dtype=torch.float64
        )
        parts.counts[5] += 1
    if parts.probes is not None:
        before = parts.probes.num_hvps
        _check_gradient(parts.probes.add(batch, index, sweep), index)
        parts.counts[3] += parts.probes.num_hvps - before


def _recorded(
    space: WeightSpace, parts: _Parts, sweep: int, tick: Tick, checkpoint: Checkpoint | None
) -> Iterator[tuple[int, Any]]:
    """The batches with loss units that are still to do in a pass; each is noted as done when the next is asked for."""
    batches = space.objective.batches
    skipped = checkpoint.skipped(sweep) if checkpoint is not None else set()
    for _ in range(batches.share(skipped)):
        tick()  # a bar goes on from there
    for index, batch in batches.without(skipped):
        if space.objective.has_units(batch):
            yield index, batch
            if checkpoint is not None:
                checkpoint.record(sweep, index, batch, parts.tensors())
        tick()


@dataclass
class _Found:
    """Means made of the sums."""

    values: Vector
    stderr: Vector | None
    trace: float
    trace_stderr: float | None
    sample: DiagonalSample
    share: dict[str, float] | None = None
    notes: tuple[str, ...] = ()


def _finish(parts: _Parts, *, whole: bool) -> _Found:
    """Divide sums into means, and blend; ``whole`` says that the data is all there is, and no subset."""
    if parts.exact is not None:
        sums = parts.exact.sums
        trace, error = pooled_trace(sums)
        sample = _sample([sums], [torch.ones(len(sums.names))], exact=whole)
        values = sums.mean_()
        nothing = {name: torch.zeros_like(value) for name, value in values.items()}
        return _Found(values, nothing, trace, 0.0 if whole else error, sample)
    if parts.probes is not None and parts.gradients is not None:
        probes, gradients = parts.probes.sums, parts.gradients.sums
        # the blend's own trace would keep a part of the Gauss-Newton matrix's bias
        (trace, error), (quiet, _) = pooled_trace(probes), pooled_trace(gradients)
        share, excess = blend_share(probes, gradients)
        notes: tuple[str, ...] = ()
        if error is not None and abs(trace - quiet) > max(SURE * error, MISSED * abs(trace)):
            share = torch.ones_like(share)
            notes = (
                f"The Gauss–Newton part misses most of the curvature: its trace is {quiet:.4g}, that of the Hessian "
                f"{trace:.4g} ± {error:.2g}. The diagonal is Hutchinson's alone, unbiased and noisy; more passes make "
                "it steadier.",
            )
        sample = _sample([probes, gradients], [share, 1 - share])
        values, stderr = blend_(probes, gradients, share, excess)
        return _Found(values, stderr, trace, error, sample, dict(zip(probes.names, share.tolist(), strict=True)), notes)
    if parts.probes is not None:
        sums = parts.probes.sums
        trace, error = pooled_trace(sums)
        sample = _sample([sums], [torch.ones(len(sums.names))])
        return _Found(sums.mean_(), sums.elementwise_stderr_(), trace, error, sample)
    if parts.gradients is not None:
        sums = parts.gradients.sums
        trace, _ = pooled_trace(sums)
        sample = _sample([sums], [torch.ones(len(sums.names))], biased=True)
        note = (
            "The diagonal and its trace are those of the Gauss-Newton matrix. How far that is from the Hessian is "
            "unknown, so the trace has no standard error; estimator='blend' or 'hutchinson' gives one."
        )
        return _Found(sums.mean_(), sums.elementwise_stderr_(), trace, None, sample, notes=(note,))
    raise ValueError("There are no sums to finish: say in _Parts.of what the estimator sums.")


def _sample(sums: list[DiagonalSums], shares: list[Tensor], **known: bool) -> DiagonalSample:
    """The weights that are looked at, by groups of batches."""
    first = sums[0].replicates
    parts = [
        Part(dict(zip(s.names, share.tolist(), strict=True)), s.replicates.sums, s.replicate_units)
        for s, share in zip(sums, shares, strict=True)
    ]
    return DiagonalSample(first.places, first.scales, parts, **known)


def _check_gradient(finite: bool, index: int) -> None:
    if not finite:
        raise ValueError(
            f"The gradient of batch {index} is not finite. Look at that batch's inputs, or use wider weights "
            "(float32 instead of float16)."
        )
