"""The running curvature h during training, and the level σ of the noise that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.config import NoiseConfig
from hf_pacgen.noise.layout import Block
from hf_pacgen.noise.perturbation import Perturbation
from hf_pacgen.noise.products import Products
from hf_pacgen.noise.rows import RowLevels


@dataclass
class RunningMean:
    """A weighted exponential mean of samples x_n, kept as a sum: Σ c_n x_n / Σ c_n with c_n = weight_n / decayⁿ.

    The sum is only ever added to, and there is no start-up bias to correct.
    """

    growth: float = 1.0  # 1/decayⁿ of the next sample
    total: float = 0.0  # Σ c_n

    LIMIT = 1e12  # where growth is taken out of the sum, far below the largest float32

    def add(self, weight: float, decay: float) -> None:
        """Count a sample of a given weight, which was added to the sum times ``growth``."""
        self.total += self.growth * weight
        self.growth /= decay

    @property
    def divisor(self) -> float:
        """What the sum is divided by: Σ c_n, or 1 before the first sample (the sum is 0 then)."""
        return self.total or 1.0


class CurvatureTracker:
    """Level σ of the noise of every weight, from a running curvature where the shape needs one.

    ``price`` keeps h_i ← mean of g_i(w+u) u_i / E u_i², which has the expectation H_ii up to third order
    (Price 1958; integration by parts).  A weight is sampled in one optimizer step out of ``curvature_every``;
    blocks take turns, so that every step does an equal share of the work.  A mean below 0 counts as 0 in σ only.
    ``adam`` reads h_i = B · v̂_i from the optimizer, with B the examples of a step: the mean square of a gradient
    of B examples is 1/B of that of one, which estimates the Gauss-Newton diagonal.  ``hutchinson`` averages
    estimates that are made elsewhere.
    """

    def __init__(self, config: NoiseConfig, noise: Perturbation, *, eta: float) -> None:
        self.config, self.noise = config, noise
        self.rho = 0.0 if isinstance(config.rho, str) else float(config.rho)
        self.rho_is_known = config.rho != "estimate"
        self.num_parameters = sum(parameter.shape.numel() for parameter in noise.parameters.values())
        shape = config.shape.facts
        known = {"scale": config.largest_scale, "gamma": config.gamma, "epsilon": config.epsilon}
        # the formula is of uniform noise, E u² = σ²/3; for normal noise its minimizer is 1/sqrt(η(H + ρ√m N/3))
        known |= {"eta": eta * (3 / noise.kind.level_ratio), "num_parameters": self.num_parameters}
        self._level = partial(shape.level, **{name: known[name] for name in known.keys() & shape.takes})
        self._rows = RowLevels(noise, self._level) if config.shape.uses_rows else None
        self.source = config.curvature.facts if config.shape.uses_curvature else None
        self.takes_samples = self.source is not None and self.source.from_products
        self.second_moments: dict[str, Tensor | None] = {}
        self._adam_divisor = 1.0
        blocks = noise.layout.blocks
        period = int(config.curvature_every or 1) if self.takes_samples else 1
        # the turn of each block, and the key of its mean
        self._phases = [block.index % period for block in blocks]
        self.means = {phase: RunningMean() for phase in range(period)}
        keeps = self.source is not None and not self.source.from_optimizer
        self.sums = noise.layout.buffers(torch.float32) if keeps else {}
        self._sums = [self.sums[block.pool][block.begin : block.end] for block in blocks] if keeps else []
        # the largest sum of each block: while it is small all σ are at the box, and most of the formula is skipped
        self._peaks = {block.index: 0.0 for block in blocks if block.on_cpu} if keeps else {}
        # memory for σ: that of one block is used up before that of the next is asked for
        self._work: dict[torch.dtype, Tensor] = {}
        self._buffers: list[Sequence[Tensor] | None] = [None] * len(blocks)
        for block in sorted(blocks, key=lambda block: -block.size):
            if self.source is not None and block.on_cpu:
                work = self._work.setdefault(block.wide, torch.empty(2, block.size, dtype=block.wide))
                self._buffers[block.index] = work[:, : block.size].unbind()  # the largest block came first

    @property
    def one_level(self) -> float | None:
        """σ, where it is the same everywhere."""
        return self.config.largest_scale if self.config.shape.facts.is_one_level else None

    def look(self) -> None:
        """Read from the weights, which must be without noise, what the level depends on besides the weight itself."""
        if self._rows is not None:
            self._rows.read()

    def scale(self, block: Block, weights: Tensor) -> Tensor:
        """σ of a block, which may be overwritten, and which the next call may overwrite."""
        if self._rows is not None:
            return self._rows.of(block)
        if self.source is None:
            return self._level(weights)
        peak = None
        if self.source.from_optimizer:
            divisor = self._adam_divisor
            raw = self.noise.layout.gather(block, self.second_moments, weights.dtype)
        else:
            divisor, raw = self.means[self._phases[block.index]].divisor, self._sums[block.index]
            peak = self._peaks.get(block.index)
        return self._level(weights, raw, self.rho, divisor=divisor, buffers=self._buffers[block.index], peak=peak)

    def is_sampled(self, block: Block, step: int) -> bool:
        """Whether a sample of the block's curvature is taken from the products of this step."""
        return self.takes_samples and self._phases[block.index] == step % len(self.means)

    @torch.no_grad()
    def sample_price(self, step: int, products: Products, *, factor: float, rescale: Tensor | None) -> None:
        """Add g(w+u) u / E u² of the blocks whose turn it is, with u the last draw at the level factor · σ.

        ``rescale`` takes the gradients back to those of the backward pass (from clipping, loss scaling).
        """
        phase = step % len(self.means)
        for block in self.noise.layout.blocks:
            if self._phases[block.index] != phase:
                continue
            product, weights = products(block), self.noise.weights_of(block)
            if product is None:  # to add 0 costs as much as to add anything
                continue
            sigma = self.scale(block, weights)
            if not self.config.epsilon:
                sigma.clamp_(min=1e-12)  # not 0 where there is no noise, so that such a weight's sample is 0
            moment = self.noise.second_moment(weights, sigma)
            value = self.means[phase].growth
            if rescale is not None:
                # a gradient that overflowed, and whose step the loss scaler skips, must not stay in the mean for ever
                product.nan_to_num_(0.0, 0.0, 0.0)
                if rescale.device.type == "cpu":
                    value *= rescale.item()
                else:
                    product.mul_(rescale.to(product.device))
            self._sums[block.index].addcdiv_(product, moment, value=value)
            self._note_peak(block)
        # a turn counts without blocks too: shards differ in size, and the means must be the same in every process
        # a sample counts with the weight factor², the inverse of its variance up to a constant
        self._advance(phase, factor**2)

    @torch.no_grad()
    def add_estimate(self, diagonal: Mapping[str, Tensor]) -> None:
        """Add an estimate of the diagonal, by parameter name (of this process's parts)."""
        for block in self.noise.layout.blocks:
            target = self._sums[block.index]
            target.add_(self.noise.layout.gather(block, diagonal, target.dtype), alpha=self.means[0].growth)
            self._note_peak(block)
        self._advance(0, 1.0)

    def read_optimizer(self, optimizer: torch.optim.Optimizer, *, steps: int, examples_per_step: int) -> bool:
        """Find Adam's second moments; False before the first step, when there are none."""
        betas = optimizer.param_groups[0].get("betas")
        states = {name: optimizer.state.get(parameter, {}) for name, parameter in self.noise.parameters.items()}
        kept = {name: state["exp_avg_sq"] for name, state in states.items() if "exp_avg_sq" in state}
        if kept:
            self._refuse_parts(optimizer, states)
        self.second_moments = {name: self.noise.part(name, kept[name]) if name in kept else None for name in states}
        if betas is None or (not kept and any(states.values())):
            raise ValueError(
                f"curvature='adam' reads exp_avg_sq, which {type(optimizer).__name__} does not keep. "
                "Use an optimizer of the Adam family (such as optim='adamw_torch'), or curvature='price'."
            )
        # v̂ = v/(1 - β₂ᵗ) and h = B v̂; an optimizer that was handed over may be further than the training
        taken = [float(state["step"]) for state in states.values() if "step" in state]
        self._adam_divisor = (1 - float(betas[1]) ** max(taken, default=max(steps, 1))) / examples_per_step
        return bool(kept)

    def _refuse_parts(self, optimizer: torch.optim.Optimizer, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise where an optimizer keeps second moments of some weights only, or of other shapes than theirs."""
        # a parameter that never had a gradient has no state at all: its curvature is 0 indeed
        without = [name for name, state in states.items() if state and "exp_avg_sq" not in state]
        odd = [
            f"{name} ({list(moment.shape)} for {list(self.noise.parameters[name].shape)})"
            for name, state in states.items()
            if (moment := state.get("exp_avg_sq")) is not None and moment.shape != self.noise.parameters[name].shape
        ]
        remedy = "Use an optimizer that keeps them of all weights (such as optim='adamw_torch'), or curvature='price'."
        kind = type(optimizer).__name__
        if without:
            raise ValueError(
                f"curvature='adam' reads exp_avg_sq, which {kind} keeps of a part of the weights only: not of "
                f"{', '.join(without[:3])}{' and others' if len(without) > 3 else ''}, which would get the noise of "
                f"curvature 0. {remedy}"
            )
        if odd:
            raise ValueError(
                f"curvature='adam' reads exp_avg_sq of every weight, and that of {kind} is of other shapes, as of a "
                f"projected gradient: {', '.join(odd[:3])}. {remedy}"
            )

    def curvature(self) -> dict[str, Tensor]:
        """h of every parameter, as a copy (of what σ is made of; a mean below 0 is left as it is)."""
        found = {name: part.clone() for name, part in self._parts().items()}
        for block in self.noise.layout.blocks if found else ():
            for s in block.segments:
                found[s.name].view(-1)[s.start : s.start + s.count].div_(self.means[self._phases[block.index]].divisor)
        for name, moment in self.second_moments.items():
            if moment is not None:
                found[name] = moment.float() / self._adam_divisor
        return self.noise.like_parameters(found)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a resumed run needs: tensors like the parameters, by name, and JSON-able values."""
        values = {"rho": self.rho, "means": {str(key): asdict(mean) for key, mean in self.means.items()}}
        return self.noise.like_parameters(self._parts()), values

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take over the running curvature of :meth:`state`, or the same as whole tensors; its means by their turn."""
        mine = {name: self.noise.parameters[name].shape for name in self._parts()}
        if mine != {name: tensor.shape for name, tensor in tensors.items()}:
            odd = sorted(mine.keys() ^ tensors.keys())
            raise ValueError(
                f"The noise state belongs to other trainable parameters (different: {odd[:5] or 'shapes'}). "
                "Resume with the same model, or remove the file to start the running curvature anew."
            )
        for name, part in self._parts().items():
            part.copy_(self.noise.part(name, tensors[name]))
        # files of release 0.1 have no mean of a turn before its first sample, and one more for some embeddings (-1)
        self.means = {key: values["means"].get(key, RunningMean()) for key in self.means}
        for block in self.noise.layout.blocks if self.sums else ():
            self._note_peak(block)

    def take_rho(self, value: float) -> None:
        """Use an estimate of ρ from now on."""
        self.rho, self.rho_is_known = value, True

    def fits(self, tensors: Mapping[str, Tensor], means: Mapping[int, RunningMean]) -> bool:
        """Whether a state's turns may be these, as far as they tell: every sum that is not 0 has the mean of its turn.

        Of a state whose turns are fewer, or more, the sums would be divided by another number than they were made for.
        """
        if any(key >= len(self.means) for key in means):
            return False
        parts = {name: self.noise.part(name, tensors[name]) for name in self._parts() if name in tensors}
        for block in self.noise.layout.blocks:
            for s in block.segments if self._phases[block.index] not in means else ():
                if s.name in parts and bool(parts[s.name].reshape(-1)[s.start : s.start + s.count].any()):
                    return False
        return True

    def _parts(self) -> dict[str, Tensor]:
        return self.noise.layout.views(self.sums) if self.sums else {}

    def _advance(self, phase: int, weight: float) -> None:
        """Count a sample that was added to the sums of a turn."""
        mean = self.means[phase]
        mean.add(weight, self.config.curvature_decay)
        if mean.growth > RunningMean.LIMIT:
            for block in self.noise.layout.blocks:
                if self._phases[block.index] == phase:
                    self._sums[block.index].div_(mean.growth)
                    self._note_peak(block)
            mean.total, mean.growth = mean.total / mean.growth, 1.0

    def _note_peak(self, block: Block) -> None:
        if block.on_cpu:  # on a GPU, to wait for the number costs more than it saves
            self._peaks[block.index] = self._sums[block.index].amax().item()
