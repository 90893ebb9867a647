"""Expected sharpness: the mean rise of the loss under random noise on the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from hf_pacgen.config import SharpnessConfig
from hf_pacgen.curvature.ascent import coarse_weights
from hf_pacgen.curvature.operators import MeanLoss
from hf_pacgen.data.objective import Objective
from hf_pacgen.measures.session import DataOptions, Tick, measure, session
from hf_pacgen.noise.perturbation import Perturbation, ScaleFunction
from hf_pacgen.noise.perturbed import noisy_loss, scaled_noise
from hf_pacgen.results.sharpness import Sharpness

ENOUGH = 8  # degrees of freedom of a variance that is trusted to stop the drawing


@measure
def expected_sharpness(
    model: nn.Module,
    data: Any,
    *,
    noise_scale: float | Mapping[str, Tensor],
    config: SharpnessConfig = SharpnessConfig(),
    **options: Unpack[DataOptions],
) -> Sharpness:
    """E_u L̂(w + u) - L̂(w), the rise of the mean loss over all loss units under random noise on the weights.

    To second order it is Σ H_ii E u_i²/2: of normal noise of scale σ it is σ²/2 times the Hessian's trace.

    Every batch has noise of its own in every draw, which estimates the same with far less variance than one u for the
    whole data: E_u is taken of a sum over batches.  A draw costs two forward passes over the data if antithetic, else
    one, without dropout.  The noise is the same on any number of processes.  The weights are never written to.

    Args:
        model, data, options: as for :func:`hf_pacgen.pacgen`.
        noise_scale: σ, for all trainable weights or by parameter name (the others then have no noise): the standard
            deviation of normal noise, the half-width of uniform noise.
        config: distribution, number of draws, tolerance.

    Raises:
        ValueError: a σ that is negative or not finite, an unknown name, another shape, a loss that is not finite with
            the noise, and what :func:`hf_pacgen.pacgen` raises.

    Source: Neyshabur, Bhojanapalli, McAllester, Srebro 2017, arXiv 1706.08947.
    """
    box: Any = {"distribution": config.distribution, "gamma": config.gamma, "epsilon": config.epsilon}
    with session(model, data, config, stage="expected sharpness", whole=True, **options) as (objective, tick):
        noise, scale = scaled_noise(objective.parameters, noise_scale, **box)
        try:
            found = _Draws(objective, noise, scale, config, tick).run()
        finally:
            noise.restore()
    # a scale by parameter name has no one number to write
    level = None if isinstance(noise_scale, Mapping) else float(noise_scale)
    found["status"] = (*found["status"], *objective.notes)
    return Sharpness(**found, noise_scale=level, config=config.to_dict())


@dataclass
class _Rise:
    """The rise of one batch's loss over the draws so far, in Welford's running sums."""

    loss: float  # at w, summed over the units
    units: float
    mean: float = 0.0  # rise of a unit
    squares: float = 0.0  # Σ (rise - mean)²


class _Draws:
    """Draws the noise, and keeps the rise of every batch by the batch's number."""

    def __init__(
        self, objective: Objective, noise: Perturbation, scale: ScaleFunction, config: SharpnessConfig, tick: Tick
    ) -> None:
        self.objective, self.noise, self.scale, self.config, self.tick = objective, noise, scale, config, tick
        self.rises: dict[int, _Rise] = {}
        self.draw = self.forward = 0

    def run(self) -> dict[str, Any]:
        """Draw until the tolerance is met or the draws are used up."""
        over, processes = MeanLoss(self.objective, self.tick), self.objective.batches.processes
        for draw in range(1, self.config.draws + 1):
            self.draw = draw
            mean = over.over_batches(self._add)
            variance, count, loss, forward = processes.sum_(self._sums()).tolist()
            spread = math.sqrt(variance) / over.units
            # a spread from few draws of few batches is itself noise, and may be small by luck
            met = draw > 1 and (draw - 1) * count >= ENOUGH and spread <= self.config.tolerance * abs(mean)
            if met and (self.config.tolerance or spread == 0):
                break
        stderr = spread if draw > 1 else None
        return {
            "mean": mean,
            "stderr": stderr,
            "draws": draw,
            "converged": met,
            "loss": loss / over.units,
            "num_examples": over.examples,
            "num_units": over.units,
            "num_forward": int(forward),
            "status": tuple(self._status(mean, stderr)),
        }

    def _add(self, batch: Any, index: int) -> tuple[float, float]:
        # draw once more for a batch: the sum of its mean rises so far, and its units
        if index not in self.rises:
            self.noise.restore()  # from the batch before
            self.rises[index] = _Rise(*self._loss(batch, index))
        seen = self.rises[index]
        if seen.units:
            self.noise.draw(self.scale, self.config.seed, "sharpness", self.draw, index)
            self.noise.apply()
            total, _ = self._loss(batch, index)
            if self.config.antithetic:  # u and -u together cancel the gradient's part of the rise
                self.noise.mirror()
                self.noise.apply()
                total = (total + self._loss(batch, index)[0]) / 2
            rise = (total - seen.loss) / seen.units
            before = rise - seen.mean
            seen.mean += before / self.draw
            seen.squares += before * (rise - seen.mean)
        return seen.units * seen.mean, seen.units

    def _loss(self, batch: Any, index: int) -> tuple[float, float]:
        self.forward += 1
        return noisy_loss(self.objective, self.noise, batch, index, remedy="Or lower noise_scale.")

    def _sums(self) -> Tensor:
        # the variance of Σ n_b rise_b, and the numbers of batches, summed loss and forward passes
        # batches have noise of their own, so their variances add
        variance = sum(b.units**2 * b.squares / max(self.draw - 1, 1) / self.draw for b in self.rises.values())
        loss = sum(b.loss for b in self.rises.values())
        return torch.tensor([variance, len(self.rises), loss, self.forward], dtype=torch.float64)

    def _status(self, mean: float, stderr: float | None) -> Iterator[str]:
        yield from coarse_weights(self.objective)
        if stderr is None:
            yield "The standard error is unknown: a single draw shows no spread. Use more draws."
        elif stderr > 0.5 * abs(mean):
            yield f"The expected sharpness is noisy: {mean:.4g} ± {stderr:.2g}. Use more draws."
