"""Gauss-Newton-Bartlett: squares of gradients on labels drawn from the model.  Quiet, positive, biased by H - GGN."""

from __future__ import annotations

from typing import Any

from hf_pacgen.config import ScoreConfig
from hf_pacgen.curvature.diagonal.sampled_labels import SampledLabels
from hf_pacgen.curvature.diagonal.sums import DiagonalSums
from hf_pacgen.curvature.diagonal.through_outputs import output_gradients
from hf_pacgen.curvature.displacement import TensorDirection
from hf_pacgen.curvature.weight_space import Vector, WeightSpace, zeros_like
from hf_pacgen.data.losses import BatchLoss
from hf_pacgen.maths.counter_rng import stream_key
from hf_pacgen.model.embeddings import dense

__all__ = ["GaussNewton"]


class GaussNewton:
    """Sums of G_b ⊙ G_b, with G_b the gradient of a batch's loss summed over sampled labels.

    Unbiased for the diagonal of the Gauss-Newton matrix of the summed loss; one gradient a batch.
    """

    kind = "gradients"

    def __init__(self, space: WeightSpace, config: ScoreConfig, *, elementwise: bool = False) -> None:
        self.space, self.seed, self.config = space, config.seed, config
        self.outputs: tuple[str, ...] | None = None
        """Of the model, through which the loss is differentiated twice; None where labels are drawn instead."""
        self.likelihood: SampledLabels | None = None
        """From which they are drawn; None for those of the cross-entropy that the loss was recognized as."""
        self.sums = DiagonalSums(space, elementwise=elementwise)
        self.num_gradients = self.num_hvps = 0

    def tensors(self) -> Vector:
        """All sums by name."""
        return self.sums.tensors()

    def add(self, batch: Any, index: int, sweep: int) -> tuple[bool, BatchLoss]:
        """Add a batch; returns whether its numbers were finite, and its loss on the true labels."""
        if self.outputs is not None:
            return self._add_through(self.outputs, batch, index, sweep)
        if self.likelihood is not None:
            return self._add_drawn(self.likelihood, batch, index, sweep)
        objective = self.space.objective
        self.space.restore()
        with objective.rows.sparse_gradients():
            sampled, true = objective.sampled_loss(batch, index, stream_key(self.seed, "labels", sweep, index))
        if sampled.requires_grad:
            sampled.backward()
        del sampled  # or its graph would be there beside the gradient
        gradient = self.space.take_gradient()
        self.num_gradients += 1
        finite = self.sums.add_gradient(self.sums.group(index, sweep), gradient, true.units, objective.rows.of(index))
        return finite, true

    def _add_drawn(self, likelihood: SampledLabels, batch: Any, index: int, sweep: int) -> tuple[bool, BatchLoss]:
        rows = self.space.objective.rows
        gradient, true = likelihood.gradient(batch, index, stream_key(self.seed, "labels", sweep, index))
        if not true.units:
            return True, true
        self.num_gradients += 1
        group = self.sums.group(index, sweep)
        if not likelihood.has_rest:
            return self.sums.add_gradient(group, gradient, true.units, rows.of(index)), true
        diagonal = {name: dense(g).to(self.space.zeros_type(name)).square() for name, g in gradient.items()}
        for name, value in likelihood.rest_diagonal(batch, index, self.config, sweep).items():
            diagonal[name] = diagonal[name] + value if name in diagonal else value
        self.num_hvps += 1
        return self.sums.add_diagonal(group, diagonal, true.units), true

    def _add_through(self, outputs: tuple[str, ...], batch: Any, index: int, sweep: int) -> tuple[bool, BatchLoss]:
        key = stream_key(self.seed, "outputs", sweep, index)
        curved, plain, true = output_gradients(self.space, outputs, batch, index, key)
        if not true.units:
            return True, true
        self.num_gradients += 2
        names = self.space.weights
        whole = {name: plain[name] if name in plain else zeros_like(names[name]) for name in names}
        direction = TensorDirection(whole)
        return self.sums.add_probe(self.sums.group(index, sweep), curved, direction, true.units, {}), true
