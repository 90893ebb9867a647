"""The largest loss in a box around the weights, by projected gradient ascent."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_pacgen.config import SharpnessConfig
from hf_pacgen.curvature.displacement import TensorDirection
from hf_pacgen.curvature.operators import MeanGradient, Tick
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.objective import Objective
from hf_pacgen.maths.counter_rng import stream_key, uniform
from hf_pacgen.maths.score import neighborhood
from hf_pacgen.model.precision import wide
from hf_pacgen.results.worst_case import WorstCaseSharpness

__all__ = ["ARMIJO", "LONG", "SETTLED", "ascend", "coarse_weights"]

ARMIJO = 1e-3
"""Part of the rise that the slope promises which a step must bring."""


LONG = 1e3
"""First step, in boxes, of a coordinate with the mean slope: nearly all jump to the edge that the slope points to."""


SETTLED = 1e-4
"""Relative gain of a step below which the ascent ends."""


def ascend(
    space: WeightSpace, box: float | Mapping[str, Tensor], config: SharpnessConfig, *, tick: Tick = lambda: None
) -> WorstCaseSharpness:
    """Projected ascent from w and from random places in the box, on all processes alike.

    Args:
        space: the weights, which are left as found.
        box: ε of ε(|w_i| + 1), or half-widths by parameter name.
        config: starts, steps and seed.
        tick: called after every batch.
    """
    ascent = _Ascent(space, box, tick)
    rises, settled, base = [], [], 0.0
    for start in range(config.ascent_starts):
        loss, height, converged = ascent.climb(ascent.start(start, config.seed), config.ascent_steps)
        if start == 0:
            base = loss
        rises.append(height - base)
        settled.append(converged)
    best = max(range(len(rises)), key=rises.__getitem__)
    value, converged = max(rises[best], 0.0), settled[best]
    status = coarse_weights(space.objective)
    if not converged:
        status.append(f"The ascent did not settle in {config.ascent_steps} steps. Use more ascent_steps.")
    return WorstCaseSharpness(
        value=value,
        relative=100 * value / (1 + base),
        loss=base,
        rises=tuple(rises),
        steps=ascent.steps,
        converged=converged,
        num_examples=ascent.gradient.examples,
        num_units=ascent.gradient.units,
        box=None if isinstance(box, Mapping) else float(box),
        status=tuple(status),
        config=config.to_dict(),
    )


def coarse_weights(objective: Objective) -> list[str]:
    """A sentence where displacements are rounded to weights of less than float32."""
    coarse = {p.dtype for p in objective.parameters.values() if p.element_size() < 4}
    return [
        f"The weights are {str(dtype).removeprefix('torch.')}: displacements finer than "
        f"{torch.finfo(dtype).eps / 2:.1g} of a weight are rounded away. Load the model in float32 for these."
        for dtype in sorted(coarse, key=str)
    ]


class _Ascent:
    def __init__(self, space: WeightSpace, box: float | Mapping[str, Tensor], tick: Tick) -> None:
        self.gradient, self.steps = MeanGradient(space, tick), 0
        self.box: dict[str, Tensor] = {}
        for name, weights in space.weights.items():
            w = weights.detach().to(wide(weights))
            if not isinstance(box, Mapping):
                self.box[name] = neighborhood(w, gamma=box, epsilon=box)
            elif name in box:
                self.box[name] = box[name].detach().to(w).expand_as(w)

    def start(self, number: int, seed: int) -> dict[str, Tensor]:
        """0, then places that are uniform in the box."""
        out = {}
        for name, half in self.box.items():
            key = stream_key(seed, "ascent", number, name)
            unit = uniform(key, half.numel(), dtype=half.dtype, device=half.device) if number else torch.zeros(())
            out[name] = half * (unit.view(half.shape) if number else unit.to(half))
        return out

    def climb(self, place: dict[str, Tensor], most: int) -> tuple[float, float, bool]:
        """The losses at the start and at the end of an ascent, and whether it ended by itself."""
        first, slope = self._evaluate(place)
        height = first
        # the slope in the coordinates u_i/b_i; its mean sets the scale of the steps
        size = sum(m.numel() for m in self.box.values())
        mean = sum((self.box[n] * g).abs().sum(dtype=torch.float64).item() for n, g in slope.items()) / max(size, 1)
        step = LONG / mean if mean else 0.0
        for _ in range(most - 1):
            there, promised = self._move(place, slope, step)
            if promised <= 1e-12 * abs(height):
                return first, height, True
            level, slope_there = self._evaluate(there)
            if level < height + ARMIJO * promised:
                step /= 10
                continue
            small = level - height <= SETTLED * (level - first)
            place, slope, height, step = there, slope_there, level, 2 * step
            if small:
                return first, height, True
        return first, height, False

    def _move(self, place: dict[str, Tensor], slope: dict[str, Tensor], step: float) -> tuple[dict[str, Tensor], float]:
        """The next place, clipped to the box, and the rise that the slope promises for it."""
        there, promised = {}, 0.0
        for name, half in self.box.items():
            gradient = slope[name]
            target = torch.addcmul(place[name], half * half, gradient, value=step).clamp_(-half, half)
            promised += torch.sum((target - place[name]) * gradient, dtype=torch.float64).item()
            there[name] = target
        return there, promised

    def _evaluate(self, place: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        """The mean loss and its gradient at w + u."""
        weights = self.gradient.space.weights
        everywhere = {name: place[name] if name in place else torch.zeros_like(w) for name, w in weights.items()}
        try:
            loss, slope = self.gradient.at([(TensorDirection(everywhere), 1.0)])
        except ValueError as error:
            if self.steps:
                raise ValueError(f"In the box around the weights: {error} Or take a smaller box.") from error
            raise
        self.steps += 1
        return loss, {name: slope[name] for name in self.box}
