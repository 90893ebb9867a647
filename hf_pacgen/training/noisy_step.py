"""One noisy step of training: draw the noise, put it on, take it off, learn about the curvature."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from hf_pacgen.config import NoiseConfig
from hf_pacgen.distributed.deepspeed import LazyGradients, ZeroStep, zero_optimizer
from hf_pacgen.files import write_atomically
from hf_pacgen.noise.curvature_tracker import CurvatureTracker
from hf_pacgen.noise.perturbation import DIVIDED_INTO, Perturbation
from hf_pacgen.noise.products import Gradients, PairedProducts, single_products, summed_products
from hf_pacgen.training.clipping import GradientRescale, loss_unscale
from hf_pacgen.training.estimates import estimate, needs_batches, refuse_used_up
from hf_pacgen.training.hooks import mark, take_over, unmark
from hf_pacgen.training.run_facts import Run

NOISE_FILE = "pacgen_noise.safetensors"  # the noise state in a checkpoint
ANOTHER_NOISE = (
    "Parameters were frozen or unfrozen in the middle of the training: the noise is now on those that are trainable, "
    "and its running curvature starts anew."
)

logger = logging.getLogger(__name__)


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
        self._estimates = needs_batches(config)
        if self._estimates:
            refuse_used_up(run)
        law = {"distribution": config.distribution, "gamma": config.gamma, "epsilon": config.epsilon}
        self.noise = Perturbation.of_model(run.model, **law)
        self._trainable = self._flags()
        eta = float(run.num_examples or 0) if config.eta == "n" else float(config.eta)
        self.tracker = CurvatureTracker(config, self.noise, eta=eta)
        self._reads_optimizer = self.tracker.source is not None and self.tracker.source.from_optimizer
        if self._reads_optimizer:
            self._read_optimizer(0)
        self._keys: list[tuple[str | int, ...]] = []  # of the draws in this step
        self._pairs: PairedProducts | None = None
        self._step = 0  # that of the last draw
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
        mark(self.noise.parameters.values(), run.optimizer, self.close)

    # ------------------------------------------------------------------------------------------------ the step

    def begin(self, step: int, micro_step: int = 0) -> bool:
        """Draw the noise of a micro-batch and put it on the weights; False where there is none to put on."""
        if not self.draw(step, micro_step):
            return False
        self.noise.apply()
        return True

    @property
    def outdated(self) -> bool:
        """Whether parameters were frozen or unfrozen since: the noise is of those that were trainable then."""
        return self._trainable != self._flags()

    def _flags(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self.run.model.parameters()]

    def draw(self, step: int, micro_step: int = 0) -> bool:
        """Draw the noise of a micro-batch, for others to put on; False where there is none."""
        self.noise.restore()
        self._step = step
        if callable(prepare := getattr(self.run.optimizer, "train", None)):
            prepare()  # a schedule-free optimizer moves the weights here, and would move the noisy ones later
        factor = self.factor(step)
        if micro_step == 0:
            self._keys = []
            if self._estimates:
                estimate(self.tracker, self.run, step)
        if factor == 0 or (self._reads_optimizer and not self._read_optimizer(step)):
            return False
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

    def mirror(self) -> None:
        """Turn the noise u of a pair into -u."""
        self.noise.restore()
        if self._pairs is not None:
            self._pairs.collect(self.noise.gradients(), 2.0)
        self.noise.mirror()
        self.noise.apply()

    def after_pair(self) -> None:
        """Take the noise of a pair off."""
        self.noise.restore()
        if self._pairs is not None:
            self._pairs.collect(self.noise.gradients(), 1.0)  # the noise is mirrored: + A₂ (-u)

    def before_optimizer_step(self, step: int, *, learns: bool = True) -> None:
        """Take the noise off, and sample the curvature, unless the weights are not those that it was drawn for."""
        self.noise.restore()
        if self._keys and self.tracker.takes_samples and learns:
            factor, rescale = self.factor(step), None
            if self._pairs is not None:
                products, rescale = self._pairs.mean(self._average), loss_unscale(self.run.optimizer)
            elif len(self._keys) > 1:
                products = summed_products(self.noise, self._gradients(), self.tracker.scale, self._keys, factor)
            else:
                products = single_products(self.noise, self._gradients())
            if self._rescale is not None:
                rescale = self._rescale.factor()
            elif self._zero is not None and self._zero.loss_scale != 1:
                rescale = torch.tensor(1.0 / self._zero.loss_scale)
            self.tracker.sample_price(step, products, factor=factor, rescale=rescale)
        self._keys, self._pairs = [], None

    def _gradients(self) -> Gradients:
        zero = self._zero
        if zero is None:
            return self.noise.gradients()
        return LazyGradients(self.noise.parameters, lambda name: zero.gradient(self.noise.parameters[name]))

    def factor(self, step: int) -> float:
        """The schedule: part of σ that is drawn in an optimizer step, from 0 to 1."""
        total = max(self.run.max_steps, 1)
        rise = (step + 1) / (self.config.warmup_ratio * total) if self.config.warmup_ratio else 1.0
        fall = (total - step) / (self.config.decay_ratio * total) if self.config.decay_ratio else 1.0
        return max(0.0, min(1.0, rise, fall))

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
            unmark(self.noise.parameters.values())

    # --------------------------------------------------------------------------------------------- checkpoints

    def save(self, folder: str | os.PathLike[str], *, writes: bool = True) -> None:
        """Write the noise state into a checkpoint, if this process ``writes``; all processes must call."""
        if not writes and not self.noise.divided:
            return
        tensors, values = self.tracker.state()
        whole = self.noise.gathered(tensors)  # a collective under FSDP2
        if writes:
            facts = {"state": json.dumps(values | {DIVIDED_INTO: self.noise.parts})}
            content = safetensors.torch.save(whole, facts)
            write_atomically(Path(folder) / NOISE_FILE, lambda file: file.write(content))

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Read the noise state of a checkpoint; where there is none, say so and start anew."""
        path = Path(folder) / NOISE_FILE
        if not path.is_file():
            if self.tracker.sums:
                logger.warning("%s has no %s: the running curvature of the noise starts anew.", folder, NOISE_FILE)
            return
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            values = json.loads(file.metadata()["state"])
        if tensors and (before := values.get(DIVIDED_INTO, 1)) != (now := self.noise.parts):
            # blocks of other sizes take turns at other steps, so their means do not carry over
            logger.warning(
                f"The noise state in {folder} is of a model in {before} shard(s), and this one is in {now}: the "
                "running curvature of the noise starts anew. Resume with as many processes as before to go on with it."
            )
            return
        self.tracker.load_state(tensors, values)

    # ----------------------------------------------------------------------------------------------- internals

    def _mean(self, tensor: Tensor) -> Tensor:
        return self.run.processes.sum_(tensor).div_(self.run.processes.size)

    def _read_optimizer(self, step: int) -> bool:
        optimizer = getattr(self.run.optimizer, "optimizer", self.run.optimizer)
        if optimizer is None:
            return False
        return self.tracker.read_optimizer(optimizer, steps=step, examples_per_step=self.run.examples_per_step)


def _refuse_under_deepspeed(config: NoiseConfig) -> None:
    """Raise where a noise needs what DeepSpeed keeps to itself."""
    remedy = "or train with DistributedDataParallel or FSDP2."
    if config.antithetic:
        raise ValueError(
            "antithetic=True takes two backward passes of every batch, and under DeepSpeed each of them ends in a step "
            f"of the optimizer. Set antithetic=False, {remedy}"
        )
    if config.shape.uses_curvature and config.curvature.facts.from_optimizer:
        raise ValueError(
            f"curvature={config.curvature.value!r} reads the optimizer's second moments, which DeepSpeed keeps in "
            f"parts without names. Set curvature='price' or 'hutchinson', {remedy}"
        )
