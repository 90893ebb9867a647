"""Gradients on targets drawn from a likelihood that a loss was found to have, or is said to have.

A part of the loss that does not come through the outputs, such as a router's auxiliary loss, has no likelihood: its
curvature is a product with its own Hessian along random signs, which is added.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.config import Likelihood, ScoreConfig
from hf_pacgen.curvature.hvp import HessianProduct
from hf_pacgen.curvature.weight_space import Vector, WeightSpace
from hf_pacgen.data.likelihoods import Explained, Reading, explain, readings, rebuilt
from hf_pacgen.data.losses import BatchLoss, is_causal
from hf_pacgen.data.objective import LossChanged, Objective
from hf_pacgen.data.outputs import caught
from hf_pacgen.distributed.processes import send_to_device
from hf_pacgen.model.embeddings import dense

__all__ = ["SampledLabels", "find_likelihood", "refuse_likelihood"]

BESIDE = 1e-2
"""Part of a gradient that rounding may leave over beside the outputs."""
FEW = 8
"""Slopes of outputs that a fit of one number does not prove: then values have to agree as well."""


@dataclass
class SampledLabels:
    """The batches of one run by a likelihood.

    Attributes:
        space: the weights.
        reading: of the outputs.
        beside: the part of the first batch's gradient that does not come through the outputs.
    """

    space: WeightSpace
    reading: Reading
    beside: float = 0.0
    _scales: tuple[tuple[Tensor, ...], float] | None = None
    """Of the batch whose gradient was taken last."""
    _product: HessianProduct | None = None

    @property
    def has_rest(self) -> bool:
        """Whether a part of the loss is left to products."""
        return self.beside > BESIDE

    def gradient(self, batch: Any, index: int, key: int) -> tuple[Vector, BatchLoss]:
        """The gradient on drawn targets, at w, and the batch's loss on the true ones.

        Raises:
            LossChanged: the loss of this batch is not that of the likelihood.
        """
        space, objective = self.space, self.space.objective
        space.restore()
        batch = send_to_device(batch, objective.device)
        with objective.rows.sparse_gradients(), torch.enable_grad(), caught(objective.model) as found:
            result = objective.loss(batch, index)
        true = BatchLoss(result.total.detach(), result.units)
        if not true.units:
            return {}, true
        explained = _explained(objective, result.total, self.reading, found[-1], batch) if found else None
        if explained is None:
            raise LossChanged(
                f"The loss of batch {index} is not that of the likelihood {self.reading.likelihood.value!r}, which the "
                "first batch had. Use estimator='hutchinson', or give every batch targets of the same form."
            )
        if self.has_rest:
            self._scales = explained.scales, explained.smoothing
        device = explained.scales[0].device
        sampled = explained.sampled(torch.Generator(device=device).manual_seed(key & (2**63 - 1)))
        del explained, result
        sampled.backward()
        return space.take_gradient(), true

    def rest_diagonal(self, batch: Any, index: int, config: ScoreConfig, sweep: int) -> Vector:
        """z ⊙ H z of what :meth:`gradient`, called just before, has left of the batch's summed loss, for signs z."""
        if self._product is None:
            self._product = HessianProduct(self.space, config.hvp, displacement=config.displacement)
        probe = self.space.signs(config.seed, "rest", sweep, index)
        with self._rest_only(batch):
            values, _ = self._product(batch, index, probe)
        signs = self.space.stored(probe)
        return {name: dense(value).detach() * signs[name].to(value.dtype) for name, value in values.items()}

    @contextmanager
    def _rest_only(self, batch: Any) -> Iterator[None]:
        objective = self.space.objective
        if self._scales is None:
            raise LookupError("What is left of a loss is known once gradient() was called for the batch.")
        scales, smoothing = self._scales
        batch = send_to_device(batch, objective.device)

        def rest(total: Tensor, outputs: Any) -> Tensor:
            value = rebuilt(self.reading, outputs, batch, objective.own.label_names, scales, smoothing)
            return total - value.to(total.dtype)

        objective.less = rest
        try:
            yield
        finally:
            objective.less = None


def find_likelihood(space: WeightSpace, named: Likelihood | str | None = None) -> SampledLabels | None:
    """The likelihood of the first batch's loss, of all or of the one that is named; None without one."""
    objective = space.objective
    if objective.first is None or not space.is_whole:
        return None
    index, batch = objective.first
    space.restore()
    batch = send_to_device(batch, objective.device)
    with torch.enable_grad(), caught(objective.model) as found:
        total = objective.loss(batch, index).total
    if not found or not total.requires_grad:
        return None
    # of several outputs first: one of them by itself would leave the other to the rest
    likely = sorted(Likelihood, key=lambda one: not one.facts.targets) if named is None else [Likelihood(named)]
    for likelihood in likely:
        for reading in readings(likelihood, found[-1], causal=is_causal(objective.model)):
            explained = _explained(objective, total, reading, found[-1], batch)
            if explained is None:
                continue
            beside = _beside(space, total, explained)
            # one number fits few slopes by chance, and what has no gradient is no term of a loss
            rest = abs(explained.rest.item()) > 10 * _tolerance(objective) * abs(total.item())
            few = sum(scale.numel() for scale in explained.scales) < FEW
            if (rest and (few or (beside <= BESIDE and named is None))) or (beside > BESIDE and not explained.uniform):
                continue
            return SampledLabels(space, reading, beside)
    return None


def refuse_likelihood(space: WeightSpace, named: Likelihood | str) -> ValueError:
    """The error of a likelihood that the loss does not have."""
    why = "its value and its slope with respect to the outputs are others, or its targets were not found"
    if not space.is_whole:
        why = "the weights are sharded over processes, and the likelihood of a share of a batch cannot be told"
    return ValueError(
        f"likelihood={Likelihood(named).value!r} is not that of the loss on the first batch: {why}. Expected a loss "
        "that is its negative logarithm, up to a factor and a constant, of the model's outputs and the batch's labels. "
        f"Name another ({', '.join(repr(one.value) for one in Likelihood)}), or leave likelihood out."
    )


def _explained(objective: Objective, total: Tensor, reading: Reading, outputs: Any, batch: Any) -> Explained | None:
    try:
        return explain(total, reading, outputs, batch, objective.own.label_names, tolerance=_tolerance(objective))
    except (NotImplementedError, RuntimeError):  # the slope cannot be had, inside a reentrant checkpoint
        return None


def _tolerance(objective: Objective) -> float:
    return 3e-2 if objective.low_precision or objective.loss_dtype.itemsize < 4 else 1e-4


def _beside(space: WeightSpace, total: Tensor, explained: Explained) -> float:
    """The part of the gradient that does not come through the outputs."""
    parameters = list(space.objective.parameters.values())
    whole, rest = (
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in (total, explained.rest)
    )
    lengths = [space.norm({str(i): dense(g) for i, g in enumerate(found) if g is not None}) for found in (whole, rest)]
    return lengths[1] / lengths[0] if lengths[0] else 0.0
