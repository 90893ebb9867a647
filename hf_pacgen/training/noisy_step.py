"""One noisy step of training: draw the noise, put it on, take it off, learn about the curvature."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hf_pacgen.config import NoiseConfig
from hf_pacgen.distributed.deepspeed import LazyGradients, ZeroStep, zero_optimizer
from hf_pacgen.noise.auto_scale import AutoScale
from hf_pacgen.noise.curvature_tracker import CurvatureTracker
from hf_pacgen.noise.directions import Ascent
from hf_pacgen.noise.frozen import FrozenNoise
from hf_pacgen.noise.perturbation import Perturbation
from hf_pacgen.noise.products import Gradients, PairedProducts, single_products, summed_products
from hf_pacgen.training import noise_state
from hf_pacgen.training.clipping import GradientRescale, loss_unscale
from hf_pacgen.training.estimates import estimate, needs_batches, refuse_used_up, rehearse
from hf_pacgen.training.follow import FollowedLosses, refuse_order
from hf_pacgen.training.hooks import mark, take_over, unmark
from hf_pacgen.training.run_facts import Run

ANOTHER_NOISE = (
    "Parameters were frozen or unfrozen in the middle of the training: the noise is now on those that are trainable, "
    "and its running curvature starts anew."
)


class NoisyStep:
    """Draws noise for a step, puts it on the weights, and follows the curvature.

    Who begins a step ends it in ``finally``, by ``noise.restore()``: nothing here watches over a step.

    The noise is a function of (seed, optimizer step, micro-batch, parameter name), so it is the same after a resume
    and in every process.  All processes draw the same noise: then the gradient that DistributedDataParallel has
    averaged, g, gives the average of the processes' curvature samples, g·u/E u², without another reduction, and the
    running curvature stays the same everywhere.

    Under FSDP2 (``fully_shard``) each process has the noise, the gradient and the running curvature of its part of
    the weights, and "uniform" noise and what is learned from it are those of one process.  (Which part of a large
    model ``price`` samples in which step follows from the sizes of the parts.)

    DeepSpeed (ZeRO-1 and 2) steps at the end of its backward pass: there the step is ended by :attr:`ends`, which
    calls :meth:`before_optimizer_step` by default, when DeepSpeed's optimizer begins.

    Raises:
        ValueError: what the settings need is not known or not there, or there is other noise in the same run.
    """

    def __init__(self, config: NoiseConfig, run: Run) -> None:
        self.config, self.run = config, run
        run.agree_on_noise(config)  # before anything that one process alone may refuse
        zero = zero_optimizer(run.optimizer)
        if zero is not None:
            _refuse_under_deepspeed(config)
        take_over(run.model, run.optimizer)
        if config.eta == "n" and "eta" in config.shape.facts.takes and not run.num_examples:
            raise ValueError(
                "eta='n' is the number of training examples, which an iterable dataset does not tell. "
                "Set eta to a number, such as that of the examples."
            )
        # None where the noise is the same all along
        self.follows = None
        if config.follows_run:
            refuse_order(run)
            self.follows = FollowedLosses(AutoScale(run.steps_per_pass), run.processes)
        self._estimates = needs_batches(config)
        if self._estimates:
            refuse_used_up(run)
            rehearse(config, run)
        self.noise = _noise_of(config, run)
        self._trainable = self._flags()
        eta = float(run.num_examples or 0) if config.eta == "n" else float(config.eta)
        self.tracker = CurvatureTracker(config, self.noise, eta=eta)
        # None where the noise is random
        scale = self.tracker.scale
        self.ascent = None if config.direction.facts.by_chance else Ascent(self.noise, scale, self.tracker.one_level)
        self._reads_optimizer = self.tracker.source is not None and self.tracker.source.from_optimizer
        if self._reads_optimizer:
            self._read_optimizer(0)
        self._keys: list[tuple[str | int, ...]] = []  # of the draws in this step
        self._pairs: PairedProducts | None = None
        self._step, self._ended = 0, False  # that of the last draw, and whether its gradients are all there were
        self.ends: Callable[[int], None] = self.before_optimizer_step
        # so that who sets another is heard
        self._zero = None if zero is None else ZeroStep(zero, lambda: self.ends(self._step))
        # FSDP2 has averaged the gradients before anyone sees them
        self._average = self._mean if run.processes.size > 1 and not self.noise.divided else None
        self._rescale: GradientRescale | None = None
        # under DeepSpeed they are looked at before they are clipped
        if self.tracker.takes_samples and not config.antithetic and self._zero is None:
            self._rescale = GradientRescale(self.noise, run.optimizer, clips=run.clips, average=self._average)
        # what others want undone before the noise is taken off for good
        self.closing: list[Callable[[], None]] = []
        mark(self.noise.touched, run.optimizer, self.close)

    # ------------------------------------------------------------------------------------------------ the step

    @property
    def outdated(self) -> bool:
        """Whether parameters were frozen or unfrozen since: the noise is of those that were trainable then."""
        return self._trainable != self._flags()

    def _flags(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self.run.model.parameters()]

    def prepare(self, step: int, micro_step: int = 0) -> float:
        """Make ready for a micro-batch: the factor of its level, 0 where it is to have no noise."""
        self.noise.restore()
        self._step, self._ended = step, False
        if callable(prepare := getattr(self.run.optimizer, "train", None)):
            prepare()  # a schedule-free optimizer moves the weights here, and would move the noisy ones later
        if micro_step == 0 and self.follows is not None:
            self.follows.begin_step(step)  # here alone: the factor is the same all through a step
        factor = self.factor(step)
        if micro_step == 0:
            self._keys = []
            if self._estimates:
                estimate(self.tracker, self.run, step)
        return 0.0 if self._reads_optimizer and factor and not self._read_optimizer(step) else factor

    def draw(self, step: int, micro_step: int = 0) -> bool:
        """Draw the noise of a micro-batch, for others to put on; False where there is none."""
        factor = self.prepare(step, micro_step)
        if factor == 0:
            return False
        if self.ascent is not None:
            # all micro-batches of a step are at the weights that its first has moved to
            return self.ascent.held.facts or self._move(self.ascent, factor)
        self.tracker.look()
        key = (self.config.seed, "noise", step, self.config.draw.facts(micro_step))
        if key not in self._keys or self.config.antithetic:  # else the draw of an earlier micro-batch is still there
            self.noise.draw(self.tracker.scale, *key, factor=factor)
        if key not in self._keys:
            self._keys.append(key)
        if self.config.antithetic and self.tracker.takes_samples:
            self.noise.reduce_every_gradient()  # the products are made of each gradient of a pair
            if micro_step == 0 or self._pairs is None:
                sampled = [block for block in self.noise.layout.blocks if self.tracker.is_sampled(block, step)]
                self._pairs = PairedProducts(self.noise, sampled)
            self._pairs.collect(self.noise.gradients(), -1.0)
        return True

    @property
    def drawn(self) -> bool:
        """Whether there has been noise since the last optimizer step."""
        return bool(self._keys) or (self.ascent is not None and self.ascent.held.facts)

    @contextmanager
    def first_gradient(self) -> Iterator[None]:
        """Around the backward pass at the clean weights along whose gradient a micro-batch ascends afterwards.

        The gradients that have accumulated are as before afterwards.  The pass must leave the reduction over processes
        to this; shards of FSDP2 are reduced by the pass itself.
        """
        self.noise.reduce_every_gradient()
        with self.noise.gradients_aside():
            yield
            self._uphill.hold(self.noise.gradients(), self._average)

    def ascend(self, factor: float) -> bool:
        """Draw what the first gradient leads to, for others to put on; False where it leads nowhere."""
        return self._move(self._uphill, factor)

    @property
    def _uphill(self) -> Ascent:
        if self.ascent is None:
            raise RuntimeError(f"direction={self.config.direction.value!r} follows no gradient.")
        return self.ascent

    def _move(self, ascent: Ascent, factor: float) -> bool:
        self.tracker.look()
        return ascent.move(factor)

    def observe(self, loss: Tensor) -> None:
        """Hear of the loss of a micro-batch (its share of the loss of the optimizer step), without waiting for it."""
        if self.follows is not None:
            self.follows.observe(loss)

    def mirror(self) -> None:
        """Turn the noise u of a pair into -u, for others to put on."""
        self.noise.restore()
        if self._pairs is not None:
            self._pairs.collect(self.noise.gradients(), 2.0)
        self.noise.mirror()

    def after_pair(self) -> None:
        """Take the noise of a pair off."""
        self.noise.restore()
        if self._pairs is not None:
            self._pairs.collect(self.noise.gradients(), 1.0)  # the noise is mirrored: + A₂ (-u)

    def before_optimizer_step(self, step: int, *, learns: bool = True) -> None:
        """Take the noise off, and sample the curvature, unless the weights are not those that it was drawn for."""
        self.noise.restore()
        if self._ended:  # DeepSpeed's step came first, and has used up the gradients
            return
        if self._keys and self.tracker.takes_samples and learns:
            factor, rescale, gradients = self.factor(step), None, self._sampled_gradients(step)
            if self._pairs is not None:
                products, rescale = self._pairs.mean(self._average), loss_unscale(self.run.optimizer)
            elif len(self._keys) > 1:
                products = summed_products(self.noise, gradients, self.tracker.scale, self._keys, factor)
            else:
                products = single_products(self.noise, gradients)
            if self._rescale is not None:
                rescale = self._rescale.factor()
            elif self._zero is not None and self._zero.loss_scale != 1:
                rescale = torch.tensor(1.0 / self._zero.loss_scale)
            if self._is_sample(gradients, rescale):
                self.tracker.sample_price(step, products, factor=factor, rescale=rescale)
        if self.ascent is not None and self.config.direction.facts.from_last_step:
            # of gradients that are not those of one place there is no direction
            self.ascent.hold(self._all_gradients()) if learns else self.ascent.forget()
        self._keys, self._pairs, self._ended = [], None, self._zero is not None

    @torch.no_grad()
    def _is_sample(self, gradients: Gradients, rescale: Tensor | None) -> bool:
        """Whether the gradients of this step tell anything: they are finite, and nobody has thrown them away.

        All processes come to the same answer.  The Trainer has waited for its device by now (it looks whether the loss
        is finite), so one more number costs nothing.
        """
        found = [g for g in gradients.values() if g is not None and g.numel()]
        found += [] if self._pairs is None else list(self._pairs.collected.values())
        device = next(iter(self.noise.parameters.values())).device
        odd = torch.zeros(2, device=device, dtype=torch.float64)  # how many are not finite, how many are not 0
        if found:
            largest = torch.stack([norm.to(odd) for norm in torch._foreach_norm(found, float("inf"))])
            odd += torch.stack([(~largest.isfinite()).sum(), (largest != 0).sum()])
        broken, moved = self.noise.total(odd).tolist()
        return broken == 0 and moved > 0 and (rescale is None or bool(rescale != 0))

    def _sampled_gradients(self, step: int) -> Gradients:
        """Those that the samples of this step are made of: all, or what has to be gathered for them."""
        if self._zero is None:
            return self.noise.gradients()
        sampled = [block for block in self.noise.layout.blocks if self.tracker.is_sampled(block, step)]
        wanted = {segment.name for block in sampled for segment in block.segments}
        return {n: self._zero.gradient(p) if n in wanted else None for n, p in self.noise.parameters.items()}

    def _all_gradients(self) -> Gradients:
        zero = self._zero
        if zero is None:
            return self.noise.gradients()
        return LazyGradients(self.noise.parameters, lambda name: zero.gradient(self.noise.parameters[name]))

    def factor(self, step: int) -> float:
        """The schedule, and what follows the run: part of σ that is drawn in an optimizer step, from 0 to 1."""
        total = max(self.run.max_steps, 1)
        rise = (step + 1) / (self.config.warmup_ratio * total) if self.config.warmup_ratio else 1.0
        fall = (total - step) / (self.config.decay_ratio * total) if self.config.decay_ratio else 1.0
        return max(0.0, min(1.0, rise, fall)) * (1.0 if self.follows is None else self.follows.factor)

    def close(self) -> None:
        """Take the noise off and everything else out of the model."""
        try:
            for undo in self.closing:
                undo()
            self.noise.restore()
        finally:
            self.closing = []
            if self._zero is not None:
                self._zero.close()
            if self._rescale is not None:
                self._rescale.close()
            unmark(self.noise.touched)

    # --------------------------------------------------------------------------------------------- checkpoints

    def save(self, folder: str | os.PathLike[str], *, writes: bool = True) -> None:
        """Write the noise state into a checkpoint, if this process ``writes``; all processes must call."""
        noise_state.save(self.tracker, folder, writes=writes, ascent=self._remembered, follows=self.follows)

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Read the noise state of a checkpoint; where there is none, say so and start anew."""
        noise_state.load(self.tracker, folder, ascent=self._remembered, follows=self.follows)

    @property
    def _remembered(self) -> Ascent | None:
        return self.ascent if self.config.direction.facts.from_last_step else None

    # ----------------------------------------------------------------------------------------------- internals

    def _mean(self, tensor: Tensor) -> Tensor:
        return self.run.processes.sum_(tensor).div_(self.run.processes.size)

    def _read_optimizer(self, step: int) -> bool:
        optimizer = getattr(self.run.optimizer, "optimizer", self.run.optimizer)
        if optimizer is None:
            return False
        return self.tracker.read_optimizer(optimizer, steps=step, examples_per_step=self.run.examples_per_step)


def _noise_of(config: NoiseConfig, run: Run) -> Perturbation:
    if config.target.facts.trained:
        law = {"distribution": config.distribution, "gamma": config.gamma, "epsilon": config.epsilon}
        return Perturbation.of_model(run.model, **law)
    if run.compiled:
        raise ValueError(
            f"target={config.target.value!r} draws noise inside the products of the model, which torch.compile would "
            "trace once and for all. Train without torch_compile, or use recipe='rows'."
        )
    return FrozenNoise(run.model, scale=config.largest_scale)


def _refuse_under_deepspeed(config: NoiseConfig) -> None:
    """Raise where a noise needs what DeepSpeed keeps to itself."""
    remedy = "or train with DistributedDataParallel or FSDP2."
    if (asks := config.second_gradient) is not None:
        raise ValueError(
            f"{asks} takes two gradients of every batch, and under DeepSpeed each of them ends in a step of the "
            f"optimizer. Use a recipe of one gradient, such as 'rows' or 'ascent', {remedy}"
        )
    if config.shape.uses_curvature and config.curvature.facts.from_optimizer:
        raise ValueError(
            f"curvature={config.curvature.value!r} reads the optimizer's second moments, which DeepSpeed keeps in "
            f"parts without names. Set curvature='price' or 'hutchinson', {remedy}"
        )
