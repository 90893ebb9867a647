"""The running curvature h during training, and the level σ of the noise that follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.config import CurvatureSource, NoiseConfig, NoiseShape
from hf_pacgen.distributed.shards import local, part_like, shard_like
from hf_pacgen.maths.distributions import NoiseDistribution
from hf_pacgen.maths.noise_scale import (
    article_noise_scale,
    isotropic_noise_scale,
    magnitude_noise_scale,
    optimal_noise_scale,
)
from hf_pacgen.model.embeddings import pick_rows
from hf_pacgen.noise.layout import Block
from hf_pacgen.noise.lookup import LookupNoise
from hf_pacgen.noise.perturbation import Perturbation

__all__ = ["CurvatureTracker", "RunningMean"]

LOOKUPS = -1
"""Key of the running mean of embeddings whose rows are perturbed where they are read."""


@dataclass
class RunningMean:
    """A weighted exponential mean of samples x_n, kept as a sum: Σ c_n x_n / Σ c_n with c_n = weight_n / decayⁿ.

    The sum is only ever added to.  So a sample of zeros costs nothing (rows of an embedding that a batch does not
    read), and there is no start-up bias to correct.

    Attributes:
        growth: 1/decayⁿ of the next sample.
        total: Σ c_n.
    """

    growth: float = 1.0
    total: float = 0.0

    LIMIT = 1e12
    """Where growth is taken out of the sum, far below the largest float32."""

    def add(self, weight: float, decay: float) -> None:
        """Count a sample of a given weight, which was added to the sum times ``growth``."""
        self.total += self.growth * weight
        self.growth /= decay

    @property
    def divisor(self) -> float:
        """What the sum is divided by: Σ c_n, or 1 before the first sample (of a sum of zeros)."""
        return self.total or 1.0


class CurvatureTracker:
    """Level σ of the noise of every weight, from a running curvature where the shape needs one.

    ``price`` keeps h_i ← mean of g_i(w+u) u_i / E u_i², which has the expectation H_ii up to third order
    (Price 1958; integration by parts).  A weight is sampled in one optimizer step out of ``curvature_every``;
    blocks take turns, so that every step does an equal share of the work.  A mean below 0 counts as 0 in σ only.
    ``adam`` reads h_i = B · v̂_i from the optimizer, with B the examples of a step: the mean square of a gradient
    of B examples is 1/B of that of one, which estimates the Gauss-Newton diagonal.  ``hutchinson`` averages
    estimates that are made elsewhere.

    Args:
        config: settings.
        noise: the perturbation whose blocks are followed.
        lookups: embeddings that are perturbed row by row, by parameter name.
        eta: η.
    """

    def __init__(
        self, config: NoiseConfig, noise: Perturbation, lookups: Mapping[str, LookupNoise], *, eta: float
    ) -> None:
        self.config, self.noise, self.lookups = config, noise, lookups
        # for normal noise, E u² is σ² and not σ²/3, so the minimizer is 1/sqrt(η(H + ρ√m N/3))
        self.eta = eta if config.distribution is NoiseDistribution.UNIFORM else 3 * eta
        self.rho = 0.0 if isinstance(config.rho, str) else float(config.rho)
        self.scale_factor = float(config.scale or 0.0)
        self._named = {**noise.parameters, **{name: lookup.weight for name, lookup in lookups.items()}}
        self.num_parameters = sum(parameter.shape.numel() for parameter in self._named.values())
        self.source = config.curvature if config.shape.uses_curvature else None
        self.second_moments: dict[str, Tensor | None] = {}
        self.means: dict[int, RunningMean] = {}
        self._work: dict[Any, Tensor] = {}
        self._peaks: dict[int, float] = {}
        """The largest sum of a block, where it is known."""
        self.sums: dict[Any, Tensor] = {}
        self.row_sums: dict[str, Tensor] = {}
        if self.source in (CurvatureSource.PRICE, CurvatureSource.HUTCHINSON):
            self.sums = noise.layout.buffers(torch.float32)
            self.row_sums = {
                name: torch.zeros_like(lookup.weight, dtype=torch.float32, requires_grad=False)
                for name, lookup in lookups.items()
            }

    # ------------------------------------------------------------------------------------------------ the level

    def scale(self, block: Block, weights: Tensor) -> Tensor:
        """σ of a block."""
        if self.source is None:
            return self._level(weights, None, 1.0)
        if self.source is CurvatureSource.ADAM:
            raw = self.noise.layout.gather(block, self.second_moments, weights.dtype)
            return self._level(weights, raw, self._adam_divisor)
        divisor = self._mean(self._phase(block)).divisor
        return self._level(weights, self._sum(block), divisor, self._peaks.get(block.index))

    def row_scale(self, name: str, rows: Tensor, weights: Tensor) -> Tensor:
        """σ of some rows of an embedding."""
        if self.source is None:
            return self._level(weights, None, 1.0)
        if self.source is CurvatureSource.ADAM:
            moments = self.second_moments[name]
            raw = torch.zeros_like(weights) if moments is None else moments[rows]
            return self._level(weights, raw.to(weights.dtype), self._adam_divisor)
        return self._level(weights, self.row_sums[name][rows], self._mean(LOOKUPS).divisor)

    def _level(self, weights: Tensor, raw: Tensor | None, divisor: float, peak: float | None = None) -> Tensor:
        """σ at h = raw/divisor: the division moves into the constants of the formula."""
        config = self.config
        if config.shape is NoiseShape.ISOTROPIC:
            return isotropic_noise_scale(weights, scale=self.scale_factor)
        if config.shape is NoiseShape.MAGNITUDE:
            return magnitude_noise_scale(weights, scale=self.scale_factor)
        raw = torch.zeros_like(weights) if raw is None else raw
        if config.shape is NoiseShape.ARTICLE:
            return article_noise_scale(
                weights,
                raw,
                self.rho * divisor,
                scale=self.scale_factor * math.sqrt(divisor),
                gamma=config.gamma,
                epsilon=config.epsilon,
                buffers=self._buffers(weights),
                peak=peak,
            )
        return optimal_noise_scale(
            weights,
            raw,
            self.rho * divisor,
            eta=self.eta / divisor,
            gamma=config.gamma,
            epsilon=config.epsilon,
            num_parameters=self.num_parameters,
            scale=self.scale_factor,
            buffers=self._buffers(weights),
            peak=peak,
        )

    # ----------------------------------------------------------------------------------------------- the sources

    def is_sampled(self, block: Block, step: int) -> bool:
        """Whether ``price`` takes a sample of the block's curvature in this step."""
        return self.source is CurvatureSource.PRICE and self._phase(block) == step % self._period

    def rows_are_sampled(self, step: int) -> bool:
        """Whether ``price`` takes a sample of the embeddings' curvature in this step."""
        return self.source is CurvatureSource.PRICE and step % self._period == 0

    @torch.no_grad()
    def sample_price(
        self,
        step: int,
        products: Callable[[Block], Tensor],
        gradients: Mapping[str, Tensor | None],
        *,
        factor: float,
        rescale: Tensor | None,
    ) -> None:
        """Add g(w+u) u / E u² of the blocks whose turn it is, with u the last draw at the level factor · σ.

        A sample counts with the weight factor², the inverse of its variance up to a constant.

        Args:
            products: g(w+u) u of a block, with g the gradient of the step's loss.
            gradients: g by parameter name (None is 0), for embeddings that are perturbed row by row.
            rescale: what takes the gradients back to those of the backward pass (from clipping, loss scaling).
        """
        for block in self.noise.layout.blocks:
            if self.is_sampled(block, step):
                product, weights = products(block), self.noise.weights_of(block)
                moment = self._moment(weights, self.scale(block, weights))
                self._add(self._phase(block), product, moment, rescale, self._sum(block))
                self._note_peak(block)
        if self.rows_are_sampled(step):
            for name, lookup in self.lookups.items():
                rows, weights, noise = lookup.noise_read()
                gradient = gradients[name]
                if gradient is not None and len(rows):
                    moment = self._moment(weights, self.row_scale(name, rows, weights))
                    total = self.row_sums[name][rows]
                    self._add(LOOKUPS, noise.mul_(pick_rows(gradient, rows)), moment, rescale, total)
                    self.row_sums[name].index_copy_(0, rows, total)
        # a turn counts without blocks too: shards differ in size, and the means must be the same in every process
        self._advance(step % self._period, factor**2)
        if self.lookups and self.rows_are_sampled(step):
            self._advance(LOOKUPS, factor**2)

    @torch.no_grad()
    def add_estimate(self, diagonal: Mapping[str, Tensor]) -> None:
        """Add an estimate of the whole diagonal, by parameter name."""
        for block in self.noise.layout.blocks:
            target = self._sum(block)
            target.add_(self.noise.layout.gather(block, diagonal, target.dtype), alpha=self._mean(0).growth)
            self._note_peak(block)
        for name, target in self.row_sums.items():
            target.add_(diagonal[name], alpha=self._mean(LOOKUPS).growth)
        for key in (0, LOOKUPS):
            self._advance(key, 1.0)

    def read_optimizer(self, optimizer: torch.optim.Optimizer, *, steps: int, examples_per_step: int) -> bool:
        """Find Adam's second moments; False before the first step, when there are none.

        Raises:
            ValueError: the optimizer keeps no ``exp_avg_sq``.
        """
        betas = optimizer.param_groups[0].get("betas")
        states = {name: optimizer.state.get(parameter, {}) for name, parameter in self._named.items()}
        moments = {name: state.get("exp_avg_sq") for name, state in states.items()}
        self.second_moments = {name: None if moment is None else local(moment) for name, moment in moments.items()}
        found = any(moment is not None for moment in self.second_moments.values())
        if betas is None or (not found and any(states.values())):
            raise ValueError(
                f"curvature='adam' reads exp_avg_sq, which {type(optimizer).__name__} does not keep. "
                "Use an optimizer of the Adam family (such as optim='adamw_torch'), or curvature='price'."
            )
        # v̂ = v/(1 - β₂ᵗ) and h = B v̂; an optimizer that was handed over may be further than the training
        taken = [float(state["step"]) for state in states.values() if "step" in state]
        self._adam_divisor = (1 - float(betas[1]) ** max(taken, default=max(steps, 1))) / examples_per_step
        return found

    _adam_divisor = 1.0

    def curvature(self) -> dict[str, Tensor]:
        """h by parameter name, as a copy sharded like it (of what σ is made of; a mean below 0 is left as it is)."""
        found = {}
        for name, part in self.noise.layout.views(self.sums).items() if self.sums else ():
            found[name] = part.clone()
        for block in self.noise.layout.blocks if self.sums else ():
            for s in block.segments:
                found[s.name].view(-1)[s.start : s.start + s.count].div_(self._mean(self._phase(block)).divisor)
        found |= {name: part / self._mean(LOOKUPS).divisor for name, part in self.row_sums.items()}
        for name, moment in self.second_moments.items():
            if moment is not None:
                found[name] = moment.float() / self._adam_divisor
        return {name: shard_like(part, self._named[name]) for name, part in found.items()}

    # -------------------------------------------------------------------------------------------------- the state

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a resumed run needs: tensors by name, sharded like the parameters, and JSON-able values."""
        tensors = {**(self.noise.layout.views(self.sums) if self.sums else {}), **self.row_sums}
        tensors = {name: shard_like(part, self._named[name]) for name, part in tensors.items()}
        return tensors, {"rho": self.rho, "means": {str(key): asdict(mean) for key, mean in self.means.items()}}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave, whole or sharded.

        Raises:
            ValueError: it belongs to other parameters.
        """
        mine, _ = self.state()
        if {name: part.shape for name, part in mine.items()} != {name: part.shape for name, part in tensors.items()}:
            odd = sorted(mine.keys() ^ tensors.keys())
            raise ValueError(
                f"The noise state belongs to other trainable parameters (different: {odd[:5] or 'shapes'}). "
                "Resume with the same model, or remove the file to start the running curvature anew."
            )
        for name, part in mine.items():
            local(part).copy_(part_like(tensors[name], self._named[name], self.noise.offsets.get(name, 0)))
        self.rho = float(values["rho"])
        self.means = {int(key): RunningMean(**mean) for key, mean in values["means"].items()}
        self._peaks = {}

    # ------------------------------------------------------------------------------------------------- internals

    @property
    def _period(self) -> int:
        return int(self.config.curvature_every or 1)

    def _phase(self, block: Block) -> int:
        return block.index % self._period if self.source is CurvatureSource.PRICE else 0

    def _buffers(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Two tensors to work in: σ of one block is used up before that of the next is asked for."""
        if like.device.type != "cpu":
            return None
        key = (like.device, like.dtype)
        if key not in self._work or self._work[key].shape[1] < like.numel():
            self._work[key] = like.new_empty(2, like.numel())
        box, sigma = self._work[key][:, : like.numel()].unbind()
        return box.view(like.shape), sigma.view(like.shape)

    def _mean(self, key: int) -> RunningMean:
        return self.means.setdefault(key, RunningMean())

    def _add(self, key: int, product: Tensor, moment: Tensor, rescale: Tensor | None, target: Tensor) -> None:
        """Add the sample product/moment, times rescale, to a sum."""
        value = self._mean(key).growth
        if rescale is not None:
            # a gradient that overflowed, and whose step the loss scaler skips, must not stay in the mean for ever
            product.nan_to_num_(0.0, 0.0, 0.0)
            if rescale.device.type == "cpu":
                value *= rescale.item()
            else:
                product.mul_(rescale.to(product.device))
        target.addcdiv_(product, moment, value=value)

    def _moment(self, weights: Tensor, sigma: Tensor) -> Tensor:
        """E u² at the level σ; not 0 where there is no noise, so that such a weight's sample is 0."""
        return self.noise.second_moment(weights, sigma if self.config.epsilon else sigma.clamp_(min=1e-12))

    def _sum(self, block: Block) -> Tensor:
        return self.sums[block.pool][block.begin : block.end]

    def _note_peak(self, block: Block) -> None:
        if block.pool[0].type == "cpu":  # on a GPU, to wait for the number costs more than it saves
            self._peaks[block.index] = self._sum(block).amax().item()

    def _advance(self, key: int, weight: float) -> None:
        mean = self._mean(key)
        mean.add(weight, self.config.curvature_decay)
        if mean.growth > RunningMean.LIMIT:
            for target in self.row_sums.values() if key == LOOKUPS else ():
                target.div_(mean.growth)
            for block in self.noise.layout.blocks if key != LOOKUPS else ():
                if self._phase(block) == key:
                    self._sum(block).div_(mean.growth)
                    self._note_peak(block)
            mean.total, mean.growth = mean.total / mean.growth, 1.0
