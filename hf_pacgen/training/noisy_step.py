"""The noise of one training run: what the Trainer and the callback share."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from hf_pacgen.config import CurvatureSource, Estimator, NoiseConfig, NoiseDraw, NoiseShape, ScoreConfig
from hf_pacgen.curvature.diagonal import estimate_diagonal
from hf_pacgen.curvature.lipschitz import estimate_lipschitz
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.objective import LossFunction, Objective
from hf_pacgen.distributed.processes import Processes
from hf_pacgen.distributed.shards import Shards, local
from hf_pacgen.maths.distributions import NoiseDistribution
from hf_pacgen.measures.session import session
from hf_pacgen.model.embeddings import dense, lone_embeddings, reaches_beyond
from hf_pacgen.model.parameters import trainable_parameters
from hf_pacgen.noise.curvature_tracker import CurvatureTracker
from hf_pacgen.noise.lookup import LookupNoise, worthwhile
from hf_pacgen.noise.pairs import PairedProducts, single_products, summed_products
from hf_pacgen.noise.perturbation import Perturbation
from hf_pacgen.training.callback.guard import Guard, Hook, release
from hf_pacgen.training.clipping import GradientRescale, loss_unscale

__all__ = ["NOISE_FILE", "NoiseEngine", "Run"]

NOISE_FILE = "pacgen_noise.safetensors"
"""Name of the noise state in a checkpoint."""

_ENGINES: WeakKeyDictionary[Any, ref[NoiseEngine]] = WeakKeyDictionary()
"""The engine of every run that goes on, by the run's optimizer."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the noise has to know of a training run.

    Attributes:
        model: the model without wrappers.
        optimizer: None where no training was set up; ``adam`` needs it.
        dataset, collate_fn, batch_size: the training data, from which ``hutchinson`` and ρ take batches.
        num_examples: n, or None where it is not known.
        examples_per_step: examples of an optimizer step, over all processes.
        max_steps: optimizer steps of the training.
        processes: those that train together.
        clips: whether gradients are clipped before ``on_pre_optimizer_step``.
        compiled: whether the model goes through torch.compile.
        loss_fn: the loss, if it is not the model's own.
    """

    model: nn.Module
    optimizer: Any
    dataset: Any
    collate_fn: Callable[[list[Any]], Any] | None
    batch_size: int
    num_examples: int | None
    examples_per_step: int
    max_steps: int
    processes: Processes = field(default_factory=Processes)
    clips: bool = True
    compiled: bool = False
    loss_fn: LossFunction | None = None


class NoiseEngine:
    """Draws noise for a step, switches it on and off, and follows the curvature.

    The noise is a function of (seed, optimizer step, micro-batch, parameter name), so it is the same after a resume
    and in every process.  All processes draw the same noise: then the gradient that DistributedDataParallel has
    averaged, g, gives the average of the processes' curvature samples, g·u/E u², without another reduction, and the
    running curvature stays the same everywhere.

    Where FSDP2 (``fully_shard``) shards the model, each process has the noise, the gradient and the running curvature
    of its shards, and "uniform" noise and what is learned from it are those of one process.  (Which part of a large
    model ``price`` samples in which step follows from the sizes of the shards.)

    Args:
        config: settings.
        run: the training run.

    Raises:
        ValueError: ``eta='n'`` where the number of training examples is not known; no trainable parameters;
            parameters that are sharded otherwise than by ``fully_shard``; an optimizer that ``adam`` cannot read;
            another engine that is not closed has the same optimizer.
    """

    def __init__(self, config: NoiseConfig, run: Run) -> None:
        self.config, self.run = config, run
        self._refuse_another()
        if config.eta == "n" and config.shape is NoiseShape.PACGEN and not run.num_examples:
            raise ValueError(
                "eta='n' is the number of training examples, which an iterable dataset does not tell. "
                "Set eta to a number, such as that of the examples."
            )
        self._refuse_used_up()
        self.shards = Shards(run.model)
        self._keys: list[tuple[str | int, ...]] = []
        """Of the draws in this step."""
        self._pairs: PairedProducts | None = None
        self._whole: frozenset[str] = frozenset()
        """Embeddings whose matrix is found to be used elsewhere than in their lookup."""
        self._prepare()
        if run.optimizer is not None:  # a single step by hand has none
            _ENGINES[run.optimizer] = ref(self)

    def _prepare(self) -> None:
        """Noise, tracker and hooks, anew."""
        config, run = self.config, self.run
        release(dict(run.model.named_parameters()))
        parameters = trainable_parameters(run.model, self.shards)
        alone = lone_embeddings(run.model, parameters) if self._perturbs_rows() else {}
        embeddings = worthwhile({name: module for name, module in alone.items() if name not in self._whole})
        self._checked = not embeddings
        self.noise = Perturbation(
            {name: p for name, p in parameters.items() if name not in embeddings},
            distribution=config.distribution,
            gamma=config.gamma,
            epsilon=config.epsilon,
            shards=self.shards,
        )
        self.lookups = {name: LookupNoise(name, module, self.noise) for name, module in embeddings.items()}
        eta = float(run.num_examples or 0) if config.eta == "n" else float(config.eta)
        self.tracker = CurvatureTracker(config, self.noise, self.lookups, eta=eta)
        if self.tracker.source is CurvatureSource.ADAM:
            self._second_moments(0)
        self.guard = Guard(run.model, self.noise, watch_forward=not run.compiled)
        for lookup in self.lookups.values():
            self.guard.also.append(lookup.module.register_forward_hook(Hook(lookup)).remove)
        self.rescale = None
        if self.tracker.source is CurvatureSource.PRICE and not config.antithetic:
            self.rescale = GradientRescale(
                parameters, run.optimizer, clips=run.clips, average=self._average, shards=self.shards
            )
            self.guard.also.append(self.rescale.close)

    def _refuse_another(self) -> None:
        """Raise where the run has noise already: each would take the other's for the weights."""
        known = None if self.run.optimizer is None else _ENGINES.get(self.run.optimizer)
        if known is not None and known() is not None:
            raise ValueError(
                "Two of the PACGenTrainer and its PACGenCallbacks have noise, which would add up. Give it to one only."
            )

    def _refuse_used_up(self) -> None:
        """Raise where batches for an estimate would be taken out of the training data."""
        config, data = self.config, self.run.dataset
        estimates = config.curvature is CurvatureSource.HUTCHINSON or config.rho == "estimate"
        if not (estimates and config.shape.uses_curvature and isinstance(data, IterableDataset)):
            return
        if iter(data) is iter(data):
            raise ValueError(
                "curvature='hutchinson' and rho='estimate' take batches of the training data, and this iterable "
                "dataset can be gone through only once, so they would be lost to the training. Use curvature='price' "
                "and a number for rho, or a dataset whose __iter__ starts anew."
            )

    # ------------------------------------------------------------------------------------------------ the step

    def enter(self, step: int, micro_step: int = 0, *, event: bool = False) -> bool:
        """Put the noise of a micro-batch on the weights; False where there is none to put on.

        ``event`` says that the caller hears of the step by an event of the Trainer.
        """
        self.leave()
        if callable(prepare := getattr(self.run.optimizer, "train", None)):
            prepare()  # a schedule-free optimizer moves the weights here, and would move the noisy ones later
        factor = self.factor(step)
        if micro_step == 0:
            self._keys = []
            self._estimate(step)
        if factor == 0 or not self._has_curvature(step):
            return False
        self._draw(step, micro_step, factor)
        if self.config.antithetic and self.tracker.source is CurvatureSource.PRICE:
            self.shards.reduce_every_gradient()  # the products are made of each gradient of a pair
            if micro_step == 0 or self._pairs is None:
                sampled = [block for block in self.noise.layout.blocks if self.tracker.is_sampled(block, step)]
                self._pairs = PairedProducts(self.noise, sampled)
            self._pairs.collect(self._gradients(), -1.0)
        self.guard.enter(event=event)
        return True

    def mirror(self) -> None:
        """Turn the noise u of a pair into -u."""
        self.leave()
        if self._pairs is not None:
            self._pairs.collect(self._gradients(), 2.0)
        self.noise.mirror()
        self.guard.enter()

    def after_pair(self) -> None:
        """Take the noise of a pair off."""
        self.leave()
        if self._pairs is not None:
            self._pairs.collect(self._gradients(), 1.0)  # the noise is mirrored: + A₂ (-u)

    def leave(self) -> None:
        """Take the noise off; does nothing where there is none."""
        self.guard.leave()

    def before_optimizer_step(self, step: int) -> None:
        """Sample the curvature from the step's gradient, with the noise off."""
        self.leave()
        if self._keys and not self._checked and self._used_elsewhere():
            self._prepare()
        elif self._keys and self.tracker.source is CurvatureSource.PRICE and not self.guard.loaded:
            gradients, factor = self._gradients(), self.factor(step)
            if self._pairs is not None:
                products, rescale = self._pairs.mean(self._average), loss_unscale(self.run.optimizer)
            else:
                products = single_products(self.noise, gradients)
                if len(self._keys) > 1:
                    products = summed_products(self.noise, gradients, self.tracker.scale, self._keys, factor)
                rescale = self.rescale.factor() if self.rescale is not None else None
            self.tracker.sample_price(step, products, gradients, factor=factor, rescale=rescale)
        self._keys, self._pairs = [], None

    def _used_elsewhere(self) -> bool:
        """Find embeddings with gradients in rows that no lookup read: their noise must be on the whole matrix."""
        self._checked = True
        found = {
            name
            for name, lookup in self.lookups.items()
            if lookup.weight.grad is not None and reaches_beyond(lookup.weight.grad, lookup.noise_read()[0])
        }
        self._whole |= found
        return bool(found)

    def factor(self, step: int) -> float:
        """The schedule: part of σ that is drawn in an optimizer step, from 0 to 1."""
        total = max(self.run.max_steps, 1)
        rise = (step + 1) / (self.config.warmup_ratio * total) if self.config.warmup_ratio else 1.0
        fall = (total - step) / (self.config.decay_ratio * total) if self.config.decay_ratio else 1.0
        return max(0.0, min(1.0, rise, fall))

    def close(self) -> None:
        """Take the noise off and the hooks out of the model."""
        if self.run.optimizer is not None:
            _ENGINES.pop(self.run.optimizer, None)
        self.guard.close()

    # --------------------------------------------------------------------------------------------- checkpoints

    def save(self, folder: str | os.PathLike[str], *, writes: bool = True) -> None:
        """Write the noise state into a checkpoint.

        Args:
            folder: of the checkpoint.
            writes: whether this process is to write.  Where the model is sharded all processes must call, since the
                state is gathered; the file holds whole tensors.
        """
        if not writes and not self.shards.active:
            return
        tensors, values = self.tracker.state()
        whole = {name: self.shards.whole(tensor).cpu().clone() for name, tensor in tensors.items()}
        if writes:
            path = Path(folder) / NOISE_FILE
            temporary = path.with_suffix(".tmp")
            save_file(whole, temporary, {"state": json.dumps(values | self._layout())})
            os.replace(temporary, path)

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Read the noise state of a checkpoint; where there is none, say so and start anew."""
        path = Path(folder) / NOISE_FILE
        if not path.is_file():
            if self.tracker.source in (CurvatureSource.PRICE, CurvatureSource.HUTCHINSON):
                logger.warning("%s has no %s: the running curvature of the noise starts anew.", folder, NOISE_FILE)
            return
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            values = json.loads(file.metadata()["state"])
        if tensors and values.get("shards", 1) != self.shards.count:
            # blocks of other sizes take turns at other steps, so their means do not carry over
            logger.warning(
                "The noise state in %s is of a model in %d shard(s), and this one is in %d: the running curvature of "
                "the noise starts anew. Resume with as many processes as before to go on with it.",
                folder,
                values.get("shards", 1),
                self.shards.count,
            )
            return
        if not self._whole.issuperset(values.get("whole", ())):
            self._whole |= frozenset(values["whole"])
            self._prepare()
        self.tracker.load_state(tensors, values)

    def _layout(self) -> dict[str, Any]:
        return {"shards": self.shards.count, "whole": sorted(self._whole)}

    # ----------------------------------------------------------------------------------------------- internals

    def _perturbs_rows(self) -> bool:
        # other processes read other rows, compiled models run no hooks, and a pair needs the noise twice
        uniform = self.config.distribution is NoiseDistribution.UNIFORM
        alone = self.run.processes.size == 1 and not self.shards.active
        return uniform and alone and not self.run.compiled and not self.config.antithetic

    def _average(self, tensor: Tensor) -> Tensor:
        if self.shards.active:
            return tensor  # FSDP2 has averaged the gradients, and each process has those of its own shards
        return self.run.processes.sum_(tensor).div_(self.run.processes.size)

    def _draw(self, step: int, micro_step: int, factor: float) -> None:
        key = (self.config.seed, "noise", step, 0 if self.config.draw is NoiseDraw.STEP else micro_step)
        if key in self._keys and not self.config.antithetic:
            return  # the draw of the step's first micro-batch, still there
        self.noise.draw(self.tracker.scale, *key, factor=factor)
        for lookup in self.lookups.values():
            lookup.draw(self.tracker.row_scale, *key, factor=factor, first=not self._keys)
        if key not in self._keys:
            self._keys.append(key)

    def _gradients(self) -> dict[str, Tensor | None]:
        found = {name: p.grad for name, p in self.noise.parameters.items()}
        found |= {name: lookup.weight.grad for name, lookup in self.lookups.items()}
        return {
            name: None if gradient is None else gradient if name in self.lookups else dense(local(gradient))
            for name, gradient in found.items()
        }

    def _has_curvature(self, step: int) -> bool:
        return self.tracker.source is not CurvatureSource.ADAM or self._second_moments(step)

    def _second_moments(self, step: int) -> bool:
        optimizer = getattr(self.run.optimizer, "optimizer", self.run.optimizer)
        if optimizer is None:
            return False
        return self.tracker.read_optimizer(optimizer, steps=step, examples_per_step=self.run.examples_per_step)

    def _estimate(self, step: int) -> None:
        """Estimates that are made now and then, each on one batch of the training data."""
        config, tracker = self.config, self.tracker
        batch: Any = {"max_examples": self.run.batch_size, "seed": config.seed + step}
        if tracker.source is CurvatureSource.HUTCHINSON and step % int(config.curvature_every or 1) == 0:
            score = ScoreConfig(estimator=Estimator.HUTCHINSON, lipschitz_directions=0, **batch)
            with self._objective(score) as objective, WeightSpace(objective) as space:
                tracker.add_estimate(estimate_diagonal(space, score).values)
        if config.rho == "estimate" and tracker.source is not None and step % config.rho_every == 0:
            score = ScoreConfig(gamma=config.gamma, epsilon=config.epsilon, lipschitz_directions=1, **batch)
            with self._objective(score) as objective, WeightSpace(objective) as space:
                tracker.rho = estimate_lipschitz(space, score).value

    @contextmanager
    def _objective(self, score: ScoreConfig) -> Iterator[Objective]:
        run = self.run
        how: Any = {"loss_fn": run.loss_fn, "collate_fn": run.collate_fn, "batch_size": run.batch_size}
        self.shards.reduce_every_gradient()
        # every process takes the same batch, so the running curvature stays the same everywhere
        with torch.enable_grad(), session(run.model, run.dataset, score, shards=True, **how) as (objective, _):
            yield objective
