"""The diagonal of the Hessian: Hutchinson, Gauss-Newton-Bartlett, their blend, and exact.

The sum over batches is linear, so every batch has its own Rademacher probe: the pooled diagonal
averages as many independent off-diagonal noises as there are batches, at no cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from hf_pacgen.config import Estimator, HVPMethod, ScoreConfig
from hf_pacgen.curvature.checkpoint import Checkpoint
from hf_pacgen.curvature.diagonal_sums import DiagonalSums, zeros_like
from hf_pacgen.curvature.hvp import HessianProduct, batch_gradient
from hf_pacgen.data.collation import count_examples
from hf_pacgen.data.losses import BatchLoss, require_units
from hf_pacgen.data.objective import Objective
from hf_pacgen.maths.counter_rng import stream_key
from hf_pacgen.model.displacement import RademacherDirection, SavedWeights, chunks
from hf_pacgen.model.state import double_backward_attention, evaluation_mode
from hf_pacgen.results.diagonal import DiagonalEstimate

__all__ = ["EXACT_LIMIT", "CAUTION", "estimate_diagonal"]

EXACT_LIMIT = 20_000
"""Most parameters for which the exact diagonal (one backward pass a parameter and batch) is computed."""


CAUTION = 2.0
"""By how many standard deviations of chance a Hutchinson estimate must differ before it counts in a blend."""


class _Run:
    """The sums of one estimate, and the counters that go with them."""

    def __init__(self, objective: Objective, config: ScoreConfig, estimator: Estimator) -> None:
        parameters, keep, shards = objective.parameters, config.standard_error, objective.shards
        self.probes = (
            DiagonalSums(parameters, elementwise=keep, shards=shards)
            if estimator in (Estimator.HUTCHINSON, Estimator.BLEND)
            else None
        )
        self.gradients = (
            DiagonalSums(parameters, elementwise=keep and estimator is Estimator.GAUSS_NEWTON, shards=shards)
            if estimator in (Estimator.GAUSS_NEWTON, Estimator.BLEND)
            else None
        )
        self.exact = {n: zeros_like(p) for n, p in parameters.items()} if estimator is Estimator.EXACT else None
        self.counts = torch.zeros(5, dtype=torch.float64)
        """Σ loss, units and examples of the first pass, then the numbers of HVPs and of gradients."""

    def tensors(self) -> dict[str, Tensor]:
        """All sums by name, to be saved, or reduced over processes after the last batch."""
        named = {f"exact.{name}": tensor for name, tensor in (self.exact or {}).items()}
        for kind, sums in (("probes", self.probes), ("gradients", self.gradients)):
            if sums is not None:
                named |= {f"{kind}.{name}": tensor for name, tensor in sums.tensors().items()}
        return named | {"counts": self.counts}


def estimate_diagonal(
    objective: Objective,
    config: ScoreConfig,
    *,
    saved: SavedWeights | None,
    tick: Callable[[], Any] = lambda: None,
    checkpoint: Checkpoint | None = None,
) -> DiagonalEstimate:
    """Estimate the pooled Hessian's diagonal of an inspected objective.

    Args:
        objective: the loss, at weights that are left as found.
        config: estimator, HVP method, passes, seed, whether entries get standard errors.
        saved: a copy of the weights; needed by finite differences.
        tick: called after every batch.
        checkpoint: started on the sums as far as they are known, and saves them.

    Raises:
        ValueError: ``exact`` on a model with more than ``EXACT_LIMIT`` parameters, or a batch whose gradient
            is not finite, or data without a single loss unit.
    """
    estimator, notes = _supported(objective, Estimator(config.estimator))
    run = _Run(objective, config, estimator)
    method = None
    processes = objective.batches.processes
    if checkpoint is not None:
        checkpoint.start(run.tensors())
    with processes.together():
        if estimator is Estimator.EXACT:
            _exact_pass(objective, run, tick, checkpoint)
        else:
            method = _stream(objective, config, estimator, run, saved, tick, checkpoint)
        if checkpoint is not None:
            checkpoint.save(run.tensors())
    for tensor in run.tensors().values():
        processes.sum_(tensor)
    loss, units, examples, num_hvps, num_gradients = run.counts.tolist()
    require_units(units)
    values, stderr, trace, trace_stderr, blend = _finish(run, units)
    if config.standard_error and estimator is Estimator.EXACT:
        stderr = {name: torch.zeros_like(value) for name, value in values.items()}
    return DiagonalEstimate(
        values=values,
        stderr=stderr if config.standard_error else None,
        trace=trace,
        trace_stderr=trace_stderr,
        loss=loss / units,
        num_units=units,
        num_examples=int(examples),
        estimator=estimator,
        hvp_method=method,
        num_hvps=int(num_hvps),
        num_gradients=int(num_gradients),
        blend=blend,
        notes=tuple(notes),
    )


def _supported(objective: Objective, estimator: Estimator) -> tuple[Estimator, list[str]]:
    if estimator is Estimator.EXACT and objective.shards.active:
        raise ValueError(
            "estimator='exact' needs second derivatives, which a model sharded by fully_shard has not. Use 'blend' or "
            "'hutchinson', or score the whole model in one process."
        )
    if estimator is Estimator.EXACT and objective.num_parameters > EXACT_LIMIT:
        raise ValueError(
            f"estimator='exact' takes one backward pass for every parameter and batch: expected at most {EXACT_LIMIT} "
            f"trainable parameters, got {objective.num_parameters}. Use 'blend' or 'hutchinson', or freeze weights."
        )
    if estimator in (Estimator.BLEND, Estimator.GAUSS_NEWTON) and objective.kind.is_other:
        note = (
            f"The estimator is hutchinson instead of {estimator.value}: Gauss-Newton with sampled labels needs a "
            f"cross-entropy on the model's logits, and this is {objective.kind.value}."
        )
        return Estimator.HUTCHINSON, [note]
    return estimator, []


def _stream(
    objective: Objective,
    config: ScoreConfig,
    estimator: Estimator,
    run: _Run,
    saved: SavedWeights | None,
    tick: Callable[[], Any],
    checkpoint: Checkpoint | None,
) -> HVPMethod | None:
    """One streaming loop over passes and batches; weights are back at w whenever a loss is taken there."""
    product = None
    if run.probes is not None:
        product = HessianProduct(objective, config.hvp, saved=saved, displacement=config.displacement, sparse=True)
    elif objective.checkpointing:
        evaluation_mode(objective.model, checkpointing=True)
    gradient_passes = config.passes if estimator is Estimator.GAUSS_NEWTON else 1
    for sweep in range(config.passes):
        for index, batch in _recorded(objective, run, sweep, tick, checkpoint):
            group = index + 31 * sweep
            true = None
            if run.gradients is not None and sweep < gradient_passes:
                if saved is not None:
                    saved.restore()
                key = stream_key(config.seed, "labels", sweep, index)
                with objective.sparse_embeddings():
                    sampled, true = objective.sampled_loss(batch, index, key)
                finite = run.gradients.add_gradient(
                    group, batch_gradient(objective, sampled), true.units, objective.rows(index)
                )
                _check_gradient(finite, index)
                run.counts[4] += 1
            if sweep == 0:
                if true is None:
                    true = _loss_at_weights(objective, batch, index, saved)
                _count_batch(run, true.total, true.units, batch)
            if product is not None and run.probes is not None:
                probe = RademacherDirection(config.seed, "probe", sweep, index, offsets=objective.shards.offsets)
                values, units = product(batch, index, probe)
                if units:
                    rows = objective.rows(index)
                    _check_gradient(run.probes.add_probe(group, values, probe, units, rows), index)
                    run.counts[3] += 1
                del values  # or it would still be there beside the next product: one buffer more
    return product.method if product is not None else None


def _recorded(
    objective: Objective, run: _Run, sweep: int, tick: Callable[[], Any], checkpoint: Checkpoint | None
) -> Iterator[tuple[int, Any]]:
    """The batches with loss units that are still to do in a pass; each is noted as done when the next is asked for."""
    skipped = checkpoint.skipped(sweep) if checkpoint is not None else set()
    for _ in range(objective.batches.share(skipped)):
        tick()  # a bar goes on from there
    for index, batch in objective.batches.without(skipped):
        if objective.has_units(batch):
            yield index, batch
            if checkpoint is not None:
                checkpoint.record(sweep, index, batch, run.tensors())
        tick()


def _exact_pass(objective: Objective, run: _Run, tick: Callable[[], Any], checkpoint: Checkpoint | None) -> None:
    """diag H_b row by row: the gradient's entries are differentiated one after another."""
    evaluation_mode(objective.model, checkpointing=False)
    parameters = list(objective.parameters.values())
    for index, batch in _recorded(objective, run, 0, tick, checkpoint):
        with double_backward_attention(objective.model):
            result = objective.loss(batch, index)
            gradients = torch.autograd.grad(result.total, parameters, create_graph=True, allow_unused=True)
            for total, parameter, gradient in zip((run.exact or {}).values(), parameters, gradients, strict=True):
                if gradient is None or not gradient.requires_grad:
                    continue
                flat, out = gradient.reshape(-1), total.view(-1)
                for i in range(flat.numel()):
                    (row,) = torch.autograd.grad(flat[i], parameter, retain_graph=True, allow_unused=True)
                    run.counts[3] += 1
                    if row is not None:
                        out[i] += row.reshape(-1)[i]
                _check_gradient(bool(out.isfinite().all()), index)
        _count_batch(run, result.total.detach(), result.units, batch)


def _finish(
    run: _Run, units: float
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, float, float | None, dict[str, float] | None]:
    """Divide sums into means, and blend: values, entry errors, trace, its error, shares of Hutchinson."""
    if run.exact is not None:
        for total in run.exact.values():
            total.div_(units)
        return run.exact, None, sum(v.double().sum().item() for v in run.exact.values()), 0.0, None
    if run.probes is None or run.gradients is None:
        only = cast(DiagonalSums, run.probes or run.gradients)
        share = torch.ones(len(only.names), dtype=torch.float64)
        trace, error = _trace([(only, share)])
        values = only.mean_()
        return values, only.elementwise_stderr_(), trace, error, None
    share = _blend_share(run.probes, run.gradients)
    trace, error = _trace([(run.probes, share), (run.gradients, 1 - share)])
    quiet, noisy = run.gradients.total, run.probes.total  # both are means by now
    stderr = run.probes.elementwise_stderr_()
    for name, alpha in zip(run.probes.names, share.tolist(), strict=True):
        quiet[name].lerp_(noisy[name], alpha)
        if stderr is not None:
            stderr[name].mul_(alpha)
    return quiet, stderr, trace, error, dict(zip(run.probes.names, share.tolist(), strict=True))


def _blend_share(probes: DiagonalSums, gradients: DiagonalSums) -> Tensor:
    """α of D̂ = g + α(h - g) for every tensor: max(0, 1 - q Σ var(h)/Σ (h - g)²), g and h becoming means.

    E‖h - g‖² = ‖H - GGN‖² + var h + var g, so q = 1 would be the α of least expected squared error.  Where
    h - g is mere noise, the ratio scatters around 1 by sqrt(2/r), r the number of entries that share the noise:
    how wild single probes are cancels, as it is in both sums.  q = 1 + CAUTION sqrt(2/r) keeps chance from letting
    the noise in; r = 3 (Σ (h - g)²)²/Σ (h - g)⁴, since Gaussian noise has fourth moments of 3 squares.
    α → 1 as passes grow, whatever q.
    """
    noisy, quiet = probes.mean_(), gradients.mean_()
    moments = []
    for name in probes.names:
        found = [torch.zeros(3)]
        for _, (h, g) in chunks(noisy[name], quiet[name]):
            length = torch.linalg.vector_norm(h - g)
            shape = torch.linalg.vector_norm((h - g) / length.clamp_min(torch.finfo(length.dtype).tiny), ord=4)
            found.append(torch.stack([torch.linalg.vector_norm(h), length, shape]))
        norm, length, shape = torch.stack([row.cpu().double() for row in found]).unbind(1)
        moments.append(torch.stack([norm.square().sum(), length.square().sum(), (length * shape).pow(4).sum()]))
    table = torch.stack(moments)
    if probes.shards is not None:
        probes.shards.sum_(table)
    norms, distances, fourths = table.unbind(1)
    variance = probes.mean_variance(norms)
    if variance is None:
        return torch.zeros(len(norms), dtype=torch.float64)  # one batch shows no spread: trust the quiet one
    distances = distances.clamp_min(1e-300)
    caution = 1 + CAUTION * (2 * fourths / (3 * distances.square()).clamp_min(1e-300)).sqrt()
    return (1 - caution * variance / distances).clamp_(0, 1)


def _trace(parts: list[tuple[DiagonalSums, Tensor]]) -> tuple[float, float | None]:
    """Σ_t share_t · trace_t over parameter tensors t and parts, and its standard error between groups of batches."""
    value, errors = 0.0, None
    means = [(sums.traces @ share, sums.units, sums.num_units) for sums, share in parts]
    value = sum(float(traces.sum()) / total for traces, _, total in means)
    occupied = means[0][1] > 0
    groups = int(occupied.sum())
    if groups > 1:
        residual = torch.zeros(int(occupied.sum()), dtype=torch.float64)
        for traces, units, total in means:
            mean = traces.sum() / total
            residual += (traces[occupied] - units[occupied] * mean) / total
        errors = float((residual.square().sum() * groups / (groups - 1)).sqrt())
    return value, errors


def _loss_at_weights(objective: Objective, batch: Any, index: int, saved: SavedWeights | None) -> BatchLoss:
    if saved is not None:
        saved.restore()
    with torch.no_grad():
        return objective.loss(batch, index)


def _count_batch(run: _Run, total: Tensor, units: float, batch: Any) -> None:
    run.counts[:3] += torch.tensor([total.item(), units, count_examples(batch)], dtype=torch.float64)


def _check_gradient(finite: bool, index: int) -> None:
    if not finite:
        raise ValueError(
            f"The gradient of batch {index} is not finite. Look at that batch's inputs, or use wider weights "
            "(float32 instead of float16)."
        )
