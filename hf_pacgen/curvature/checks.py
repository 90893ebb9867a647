"""Whether the weights matter and came back, and sentences on numbers that are too good to be true."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hf_pacgen.curvature.run_identity import checksum
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.objective import Objective
from hf_pacgen.distributed.shards import local
from hf_pacgen.maths.counter_rng import rademacher, stream_key
from hf_pacgen.results.diagonal import DiagonalEstimate
from hf_pacgen.results.lipschitz import LipschitzEstimate

__all__ = ["named", "require_dependence", "require_unchanged", "sanity", "weights_checksum"]

KINKS = ("Relu", "Threshold", "MaxPool", "Hardtanh", "Hard", "Clamp", "Abs", "Amax", "MaxBackward", "Maximum", "L1")
"""In the names of operations whose gradient jumps; what jumps is found out by differences."""
NAMED = 3
"""Parameters that a sentence names."""


def require_dependence(objective: Objective) -> None:
    """Raise where the loss of the first batch does not depend on any of the weights that are to be measured.

    Raises:
        ValueError: it depends on none: a merged or disabled adapter, a detached head.
    """
    if objective.first is None:
        raise ValueError("The objective was not inspected: call inspect() before it is measured.")
    index, batch = objective.first
    processes = getattr(objective, "shards", None)
    with torch.enable_grad(), objective.rows.watching():
        result = objective.loss(batch, index)
        objective.kinked = _has_kinks(result.total) or _routes(objective.model)
        if not result.units:  # an error of its own, where the data is gone over
            return
        if result.total.requires_grad:
            result.total.backward()
    reached = {n: p.grad for n, p in objective.parameters.items() if p.grad is not None}
    moved = sum(float(bool((g.coalesce().values() if g.is_sparse else local(g)).any())) for g in reached.values())
    for parameter in objective.parameters.values():
        parameter.grad = None
    if processes is not None:
        moved = processes.sum(moved)
    if moved == 0 and (not reached or processes is not None or not _moves(objective, float(result.total))):
        raise ValueError(
            f"The loss does not depend on the {objective.num_parameters:,} trainable weights: its gradient is 0 for "
            "every one of them, and it stays the same when they are changed. Expected a loss that they shape; is an "
            "adapter disabled or merged, a layer switched off, or the head detached? Enable or unmerge it, or make "
            "other weights trainable."
        )
    objective.guard.add("weights that matter", f"{len(reached)} of {len(objective.parameters)} tensors have a gradient")
    objective.reached = tuple(reached)
    idle = [name for name in objective.parameters if name not in reached]
    if idle and processes is None:
        share = sum(objective.parameters[name].numel() for name in idle) / objective.num_parameters
        objective.guard.note(
            f"The loss of the first batch does not depend on {len(idle)} of the {len(objective.parameters)} trainable "
            f"tensors ({share:.2g} of the weights): {named(idle)}. Their curvature is 0 there. Freeze what is unused."
        )


@torch.no_grad()
def _moves(objective: Objective, before: float) -> bool:
    """Whether the loss of the first batch changes with the weights; they are put elsewhere, never written to."""
    index, batch = objective.first or (0, None)
    weights = {name: parameter.data for name, parameter in objective.parameters.items()}
    try:
        for name, parameter in objective.parameters.items():
            signs = rademacher(stream_key(0, "dependence", name), parameter.numel(), device=parameter.device)
            step = 0.1 * weights[name].abs().mean() + 1e-2
            parameter.data = weights[name] + signs.view(parameter.shape).to(parameter.dtype) * step.to(parameter.dtype)
        torch.clear_autocast_cache()
        return float(objective.loss(batch, index).total) != before
    finally:
        for name, parameter in objective.parameters.items():
            parameter.data = weights[name]
        torch.clear_autocast_cache()


def _has_kinks(total: Tensor) -> bool:
    """Whether the graph of a loss has an operation whose gradient jumps."""
    nodes: list[Any] = [total.grad_fn]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if any(kind in type(node).__name__ for kind in KINKS):
            return True
        nodes.extend(parent for parent, _ in node.next_functions)
    return False


def _routes(model: nn.Module) -> bool:
    """Whether a model chooses experts: where its choice changes, the loss itself jumps."""
    return any(kind in type(module).__name__ for module in model.modules() for kind in ("Expert", "Router"))


def weights_checksum(space: WeightSpace) -> int:
    """A checksum of the weights that are here."""
    return sum((2 * i + 1) * checksum(w) for i, w in enumerate(space.weights.values())) % (1 << 64)


def require_unchanged(space: WeightSpace, before: int) -> None:
    """Raise unless the weights, which were put back, have the checksum that they had.

    Raises:
        RuntimeError: something else has written to them.
    """
    after = weights_checksum(space)
    if after != before:
        raise RuntimeError(
            "The weights are not what they were before the score: something wrote to them meanwhile. Expected a model "
            "whose forward pass leaves its trainable weights alone. Load it again; its weights cannot be trusted."
        )
    space.objective.guard.add("the weights' checksum", f"{before:016x} before and after")


def sanity(space: WeightSpace, diagonal: DiagonalEstimate, smoothness: LipschitzEstimate | None) -> Iterator[str]:
    """Sentences on numbers that are too good to be true."""
    if diagonal.trace == 0:
        yield (
            "The Hessian's trace is exactly 0 although the loss depends on the weights: the loss is linear in them, or "
            "a part of the model cannot be differentiated twice."
        )
    else:
        flat = [
            name
            for name in space.objective.reached
            if space.is_whole and name in diagonal.values and not bool(diagonal.values[name].any())
        ]
        if flat:
            yield (
                f"The curvature of {named(flat)} is exactly 0 although the loss depends on it: the loss is linear in "
                "it, or what lies above it cannot be differentiated twice."
            )
    error = diagonal.trace_stderr
    exact = not diagonal.estimator.facts.has_standard_errors
    if error is not None and not exact and (error == 0 or math.isnan(error)):
        yield (
            f"The standard error of the trace is {error:g}: the batches are all alike, or there is no curvature. It "
            "says nothing about how good the estimate is."
        )
    if smoothness is not None and smoothness.value == 0:
        yield (
            "ρ is exactly 0: the Hessian did not change at all in the box, as for a quadratic loss, or its products "
            "do not see the weights."
        )


def named(names: list[str]) -> str:
    """The first few of some names, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:NAMED])
    return shown + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
