"""The loss that a Trainer trains: its own ``compute_loss``, on batches that it has prepared itself."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

from torch import Tensor, nn
from transformers import Trainer

from hf_pacgen.data.own_loss import ModelLoss, OwnLoss, label_names_of
from hf_pacgen.model.state import unwrap

__all__ = ["TrainerLoss", "find_trainer", "loss_of_trainer"]

LOGGED = ("_metrics", "_stored_metrics", "_total_train_tokens", "_logs")
"""What trainers of TRL write down about every loss, which a score must not add to."""


def find_trainer(model: nn.Module) -> Trainer | None:
    """The Trainer that trains a model, from inside one of its events; None outside of any."""
    # callbacks are not told whose they are: it is the ``self`` of a frame that the event came through
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer) and isinstance(owner.model, nn.Module) and unwrap(owner.model) is unwrap(model):
            return owner
        frame = frame.f_back
    return None


def loss_of_trainer(trainer: Trainer) -> OwnLoss:
    """The loss of a Trainer: that of the model where nothing of the Trainer has a part in it."""
    kind = type(trainer)
    plain = all(
        getattr(kind, name) is getattr(Trainer, name) and name not in vars(trainer)
        for name in ("compute_loss", "_prepare_inputs", "_prepare_input")
    )
    if plain and trainer.compute_loss_func is None and trainer.label_smoother is None:
        loss: OwnLoss = ModelLoss()
    else:
        loss = TrainerLoss(trainer)
    own = label_names_of(unwrap(cast(nn.Module, trainer.model)))  # the Trainer refuses to be without a model
    loss.label_names = tuple(dict.fromkeys((*(trainer.label_names or ()), *own)))
    loss.batch_size = trainer._train_batch_size
    return loss


class TrainerLoss(OwnLoss):
    """What a Trainer's ``compute_loss`` gives for a batch by itself.

    ``num_items_in_batch`` is that of the batch, as if it were all of an optimizer step.  The outputs are those of the
    model's last forward pass in it.  What the trainer logs about its losses is as before afterwards.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.name = f"{type(trainer).__name__}.compute_loss"
        if trainer.compute_loss_func is not None:
            self.name = f"the compute_loss_func of {type(trainer).__name__}"
        elif trainer.label_smoother is not None and type(trainer).compute_loss is Trainer.compute_loss:
            self.name = "the label smoothing of the Trainer"
        self._items: Any = None

    def prepare(self, batch: Any) -> Any:
        """The batch by the Trainer's own ``_prepare_inputs``; its items are counted before, as in training."""
        with _by_itself(self.trainer):
            count = getattr(self.trainer, "_get_num_items_in_batch", None)
            known = isinstance(batch, Mapping) and count is not None
            self._items = count([batch], self.trainer.args.device) if known and count is not None else None
            return self.trainer._prepare_inputs(batch)

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor | None, Any]:
        """The loss of a prepared batch, and the model's outputs."""
        outputs: list[Any] = [None]

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            outputs[0] = output

        handle = model.register_forward_hook(keep)
        try:
            with _by_itself(self.trainer):
                # a trainer may take entries out of the batch it gets
                result: Any = self.trainer.compute_loss(model, dict(batch), num_items_in_batch=self._items)
        finally:
            handle.remove()
        loss = result[0] if isinstance(result, (tuple, list)) else result
        return (loss.mean() if isinstance(loss, Tensor) else None), outputs[0]


@contextmanager
def _by_itself(trainer: Any) -> Iterator[None]:
    """No collectives, and nothing logged: other processes are at other batches."""
    logged = {name: copy.deepcopy(vars(trainer)[name]) for name in LOGGED if name in vars(trainer)}
    average, accelerator = trainer.args.average_tokens_across_devices, trainer.accelerator
    trainer.args.average_tokens_across_devices = False
    alone = {name: lambda values, *args, **kwargs: values for name in ("gather", "gather_for_metrics")}
    before = {name: vars(accelerator)[name] for name in alone if name in vars(accelerator)}
    vars(accelerator).update(alone)
    try:
        yield
    finally:
        for name in alone:
            del vars(accelerator)[name]
        vars(accelerator).update(before)
        trainer.args.average_tokens_across_devices = average
        vars(trainer).update(logged)
