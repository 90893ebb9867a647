"""Sharpness of a solution: the rise of the loss under noise on the weights, expected and at worst."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_pacgen.config import ScoreConfig
from hf_pacgen.curvature.ascent import WorstCaseSharpness, ascend, coarse_weights
from hf_pacgen.curvature.batches import count_examples
from hf_pacgen.curvature.displacement import SavedWeights
from hf_pacgen.curvature.losses import require_units
from hf_pacgen.curvature.objective import LossFunction, Objective
from hf_pacgen.measuring import check_arguments, measuring, progress_bar, ticker
from hf_pacgen.noise.perturbation import check_scale, scaled_noise
from hf_pacgen.noise.twins import Perturbation, ScaleFunction
from hf_pacgen.sharpness_config import SharpnessConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Sharpness", "WorstCaseSharpness", "expected_sharpness", "worst_case_sharpness"]

ENOUGH = 8
"""Degrees of freedom of a variance that is trusted to stop the drawing."""


@dataclass(frozen=True, kw_only=True)
class Sharpness:
    """An estimate of E_u L̂(w + u) - L̂(w).

    Attributes:
        mean: the estimate, in units of the loss.
        stderr: its standard error, from the spread of every batch's draws; None after a single draw.
        draws: draws of the noise for every batch; a pair ±u counts once.
        converged: whether the standard error came below the tolerance.
        loss: L̂(w).
        num_examples, num_units: size of the data.
        num_forward: forward passes of a batch, over all processes.
        noise_scale: the level, where it is one number.
        status: what limits the numbers, in sentences.
        config: the settings.
    """

    mean: float
    stderr: float | None
    draws: int
    converged: bool
    loss: float
    num_examples: int
    num_units: float
    num_forward: int
    noise_scale: float | None
    status: tuple[str, ...]
    config: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"status": list(self.status)}


def expected_sharpness(
    model: nn.Module,
    data: Any,
    *,
    noise_scale: float | Mapping[str, Tensor],
    config: SharpnessConfig = SharpnessConfig(),
    loss_fn: LossFunction | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Sharpness:
    """E_u L̂(w + u) - L̂(w), the rise of the mean loss over all loss units under random noise on the weights.

    To second order it is Σ H_ii E u_i²/2: of normal noise of scale σ it is σ²/2 times the Hessian's trace.

    Every batch has noise of its own in every draw, which estimates the same with far less variance than one u for the
    whole data: E_u is taken of a sum over batches.  A draw costs two forward passes over the data if antithetic, else
    one; the model's loss is evaluated without dropout.  The noise is a function of the seed, the draw, the batch's
    number and the parameters' names, so it is the same on any number of processes.  The weights are never written
    to: they come back bit for bit, after an exception too.

    Args:
        model, data, loss_fn, collate_fn, batch_size, accelerator, progress: as for :func:`hf_pacgen.pacgen`.
        noise_scale: σ, for all trainable weights or by parameter name (the others then have no noise): the standard
            deviation of normal noise, the half-width of uniform noise.
        config: distribution, number of draws, tolerance.

    Raises:
        ValueError: a σ that is negative or not finite, an unknown name, another shape, a loss that is not finite with
            the noise, and what :func:`hf_pacgen.pacgen` raises.

    Source: Neyshabur, Bhojanapalli, McAllester, Srebro 2017, arXiv 1706.08947.
    """
    check_arguments(model, config, SharpnessConfig)
    scope = ScoreConfig(max_examples=config.max_examples, seed=config.seed)
    with measuring(model, data, scope, loss_fn, collate_fn, batch_size, accelerator) as objective:
        noise, scale = scaled_noise(
            objective.parameters,
            noise_scale,
            distribution=config.distribution,
            gamma=config.gamma,
            epsilon=config.epsilon,
        )
        with progress_bar(objective, progress, "expected sharpness") as bar:
            try:
                found = _Draws(objective, noise, scale, config, ticker(objective, bar)).run()
            finally:
                noise.restore()
    return Sharpness(
        **found,
        noise_scale=None if isinstance(noise_scale, Mapping) else float(noise_scale),
        config=config.to_dict(),
    )


def worst_case_sharpness(
    model: nn.Module,
    data: Any,
    *,
    box: float | Mapping[str, Tensor] = 1e-3,
    config: SharpnessConfig = SharpnessConfig(),
    loss_fn: LossFunction | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> WorstCaseSharpness:
    """max L̂(w + u) - L̂(w) over a box |u_i| ≤ b_i, by projected gradient ascent: a lower estimate of the maximum.

    Keskar et al.'s measure is its ``relative``, 100 (max L̂(w + u) - L̂(w))/(1 + L̂(w)).  The ascent is on the mean loss
    over all loss units of the data, in the coordinates u_i/b_i, with steps that are shortened until the loss rises
    enough (Armijo).  It takes five vectors of the model's size.  The weights come back bit for bit.

    Args:
        model, data, loss_fn, collate_fn, batch_size, accelerator, progress: as for :func:`hf_pacgen.pacgen`.
        box: ε of Keskar et al.'s box, b_i = ε(|w_i| + 1), or the half-widths b_i by parameter name (others stay).
        config: number of starts and steps, seed.

    Raises:
        ValueError: a box that is negative or not finite, an unknown name, another shape, a loss that is not finite in
            the box, and what :func:`hf_pacgen.pacgen` raises.

    Source: Keskar, Mudigere, Nocedal, Smelyanskiy, Tang 2017, arXiv 1609.04836.
    """
    check_arguments(model, config, SharpnessConfig)
    scope = ScoreConfig(max_examples=config.max_examples, seed=config.seed)
    with measuring(model, data, scope, loss_fn, collate_fn, batch_size, accelerator) as objective:
        check_scale("box", box, objective.parameters)
        with SavedWeights(objective.parameters) as saved, progress_bar(objective, progress, "worst case") as bar:
            return ascend(objective, box, config, saved=saved, tick=ticker(objective, bar))


class _Draws:
    """The running mean and variance of each batch's rise, and what they come to over all batches."""

    def __init__(
        self,
        objective: Objective,
        noise: Perturbation,
        scale: ScaleFunction,
        config: SharpnessConfig,
        tick: Callable[[], Any],
    ) -> None:
        self.objective, self.noise, self.scale, self.config, self.tick = objective, noise, scale, config, tick
        self.base: dict[int, float] = {}
        """Summed loss at w."""
        self.units: dict[int, float] = {}
        self.means: dict[int, float] = {}
        self.squares: dict[int, float] = {}
        """Σ (rise - mean)²."""
        self.examples = self.forward = 0

    def run(self) -> dict[str, Any]:
        """Draw until the tolerance is met or the draws are used up."""
        processes = self.objective.batches.processes
        for draw in range(1, self.config.draws + 1):
            with processes.together():
                for index, batch in self.objective.batches:
                    if self.objective.has_units(batch):
                        self._add(draw, index, batch)
                    self.tick()
            sums = processes.sum_(self._sums(draw))
            rise, variance, units, count, examples, loss, forward = sums.tolist()
            require_units(units)
            mean, stderr = rise / units, math.sqrt(variance) / units
            known = draw > 1
            met = known and (draw - 1) * count >= ENOUGH and stderr <= self.config.tolerance * abs(mean)
            if met and (self.config.tolerance or stderr == 0):
                break
        return {
            "mean": mean,
            "stderr": stderr if known else None,
            "draws": draw,
            "converged": met,
            "loss": loss / units,
            "num_examples": int(examples),
            "num_units": units,
            "num_forward": int(forward),
            "status": tuple(self._status(mean, stderr if known else None)),
        }

    def _add(self, draw: int, index: int, batch: Any) -> None:
        if index not in self.base:
            self.noise.restore()
            self.base[index], self.units[index] = self._loss(batch, index)
            self.means[index] = self.squares[index] = 0.0
            self.examples += count_examples(batch)
        if not self.units[index]:
            return
        self.noise.draw(self.scale, self.config.seed, "sharpness", draw, index)
        self.noise.apply()
        total, _ = self._loss(batch, index)
        if self.config.antithetic:
            self.noise.mirror()
            self.noise.apply()
            total = (total + self._loss(batch, index)[0]) / 2
        rise = (total - self.base[index]) / self.units[index]
        before = rise - self.means[index]
        self.means[index] += before / draw
        self.squares[index] += before * (rise - self.means[index])

    def _loss(self, batch: Any, index: int) -> tuple[float, float]:
        self.forward += 1
        with torch.no_grad():
            try:
                result = self.objective.loss(batch, index)
            except ValueError as error:
                if self.noise.applied:
                    raise ValueError(f"With the noise on the weights: {error} Or lower noise_scale.") from error
                raise
        return result.total.item(), result.units

    def _sums(self, draws: int) -> Tensor:
        """Σ n_b rise_b, its variance, Σ n_b, and the numbers of batches, examples, summed loss and forward passes."""
        rise = sum(n * self.means[b] for b, n in self.units.items())
        variance = sum(n**2 * self.squares[b] / max(draws - 1, 1) / draws for b, n in self.units.items())
        counts = (sum(self.units.values()), len(self.units), self.examples, sum(self.base.values()), self.forward)
        return torch.tensor([rise, variance, *counts], dtype=torch.float64)

    def _status(self, mean: float, stderr: float | None) -> Iterator[str]:
        yield from coarse_weights(self.objective)
        if stderr is None:
            yield "The standard error is unknown: a single draw shows no spread. Use more draws."
        elif stderr > 0.5 * abs(mean):
            yield f"The expected sharpness is noisy: {mean:.4g} ± {stderr:.2g}. Use more draws."
