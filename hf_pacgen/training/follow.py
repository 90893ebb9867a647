"""The losses of a run that the size of its noise follows, the same in all processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from hf_pacgen.distributed.processes import Processes
from hf_pacgen.noise.auto_scale import AutoScale
from hf_pacgen.training.run_facts import Run

__all__ = ["NOISE_FACTOR", "FollowedLosses", "listen", "refuse_order"]

NOISE_FACTOR = "noise_factor"
"""Key of the factor in what a Trainer logs."""
EVERY = 4
"""Optimizer steps between two looks at their losses, for which a GPU has to be waited for and processes talk."""

logger = logging.getLogger(__name__)


def refuse_order(run: Run) -> None:
    """Raise a ValueError where the losses of a pass are not comparable; warn where there are no passes."""
    if run.order != "random":
        raise ValueError(
            f"scale='auto' compares the losses within a pass through the data, which have to come in random order; got "
            f"train_sampling_strategy={run.order!r}. Set it to 'random', or scale to a number."
        )
    if run.steps_per_pass is None and run.processes.is_main:
        logger.warning(
            "scale='auto' adds no noise here: the training data have no length, so nobody knows when an example comes "
            "again. Set scale to a number for noise all along."
        )


class FollowedLosses:
    """The losses of optimizer steps, as they are heard of micro-batch by micro-batch.

    They stay on their device for up to :data:`EVERY` steps.  Then they are averaged over the processes, so that the
    factor is the same in all of them, and it does not depend on when a checkpoint was written.
    """

    def __init__(self, auto: AutoScale, processes: Processes) -> None:
        self.auto, self.processes = auto, processes
        self._step: Tensor | None = None  # the sum over the micro-batches of the step so far
        self._steps: list[Tensor] = []  # losses of steps that were not looked at yet

    @property
    def factor(self) -> float:
        """That of the noise in the next step."""
        return self.auto.factor

    def observe(self, loss: Tensor) -> None:
        """Hear of the loss of a micro-batch, its share of that of the optimizer step."""
        loss = loss.detach().float()
        self._step = loss.clone() if self._step is None else self._step + loss

    def begin_step(self, step: int) -> None:
        """The micro-batches heard of since the last call were the optimizer step before this one."""
        if self._step is not None:
            # a run that goes on without its state is listened to from the beginning of its next pass
            first = self.auto.heard == 0 and not self._steps
            if not (first and self.auto.steps_per_pass and (step - 1) % self.auto.steps_per_pass):
                self._steps.append(self._step)
            self._step = None
        if len(self._steps) >= EVERY:
            losses = torch.stack([loss.reshape(()) for loss in self._steps])
            self._steps = []
            mean = self.processes.sum_(losses).div_(self.processes.size)
            self.auto.hear(mean.tolist())

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep, between two optimizer steps; all processes must call."""
        pending = self._steps if self._step is None else [*self._steps, self._step]
        losses = torch.stack([loss.reshape(()) for loss in pending]) if pending else torch.zeros(0)
        if pending:
            self.processes.sum_(losses).div_(self.processes.size)
        return self.auto.state() | {"pending": losses.tolist()}

    def load_state(self, state: dict[str, Any] | None, folder: str | os.PathLike[str]) -> None:
        """Go on where a checkpoint was; where it has no such state, say so and start anew."""
        if state is None:
            logger.warning("The noise of %s had one size: that of scale='auto' follows the run from here on.", folder)
            return
        self.auto.load_state(state)
        self._step, self._steps = None, [torch.tensor(loss) for loss in state["pending"]]


def listen(trainer: Trainer | None, follows: FollowedLosses) -> Callable[[], None]:
    """Hear of every loss of a Trainer that knows nothing of the noise; gives what undoes that.

    Raises:
        ValueError: there is no Trainer.
    """
    if trainer is None:
        raise ValueError(
            "scale='auto' follows the losses of the training, and this PACGenCallback could not find the Trainer. Let "
            "a transformers Trainer call it, or set scale to a number."
        )
    # no event of the Trainer tells the loss of a step
    training_step, own = trainer.training_step, vars(trainer).get("training_step")

    def heard(*args: Any, **kwargs: Any) -> Tensor:
        loss = training_step(*args, **kwargs)
        follows.observe(loss)
        return loss

    def undo() -> None:
        del trainer.training_step
        if own is not None:
            trainer.training_step = own  # type: ignore[method-assign]

    trainer.training_step = heard  # type: ignore[method-assign]
    return undo
