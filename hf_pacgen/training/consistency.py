"""A loss that pulls the outputs of two noisy passes together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

__all__ = ["Consistency", "divergence", "replaced_loss"]


def divergence(first: Tensor, second: Tensor, labels: Tensor | None = None) -> Tensor:
    """½ KL(p‖q) + ½ KL(q‖p) in nats, p and q the softmax of logits (..., classes), its mean over all rows.

    Rows whose label is -100 do not count, where there is a label for each.

    >>> logits = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    >>> divergence(logits, logits + 1).item()
    0.0
    """
    p, q = (logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1) for logits in (first, second))
    rows = ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2
    if labels is not None and labels.shape == rows.shape:
        counted = labels != -100
        return (rows * counted).sum() / counted.sum().clamp(min=1)
    return rows.mean()


class Consistency:
    """½ loss + weight · D in every pass of a Trainer, D the divergence from the outputs of the pass before.

    D is a mean over the rows of a micro-batch and over micro-batches.  Its value is halved, so that the two passes'
    losses add up to the mean loss and one D; its gradient is not.

    Raises:
        ValueError: (in a pass) the model's outputs have no logits of at least two classes.
    """

    def __init__(self, trainer: Trainer, weight: float, dropout_again: Callable[[], Any]) -> None:
        self.trainer, self.weight = trainer, weight
        self._dropout_again = dropout_again
        self._last: Tensor | None = None

    def against_a_first_look(self, within: Callable[[], Any], then: Callable[[], None]) -> Any:
        """While a pass is made: its outputs are found first, ``within`` and without a gradient; then comes ``then``."""

        def loss(compute_loss: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            with torch.no_grad(), self._dropout_again(), within():
                # a trainer may take entries out of the batch it gets
                _, outputs = _with_outputs(compute_loss, model, _copy(inputs), *args, **kwargs)
            self._last = self._logits(model, outputs)
            then()
            return self._pulled(compute_loss, model, inputs, *args, **kwargs)

        return replaced_loss(self.trainer, loss)

    def against_the_last(self) -> Any:
        """While a pass is made."""
        return replaced_loss(self.trainer, self._pulled)

    def _pulled(self, compute_loss: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        labels = inputs.get("labels") if isinstance(inputs, Mapping) else None
        loss, outputs = _with_outputs(compute_loss, model, inputs, *args, **kwargs)
        logits, other = self._logits(model, outputs), self._last
        if other is None or other.shape != logits.shape:
            shape = None if other is None else tuple(other.shape)
            raise ValueError(
                f"The outputs of two passes on one batch differ in shape: {shape} and {tuple(logits.shape)}. Expected "
                "a model whose outputs depend on nothing but its inputs and weights; use recipe='rows' for others."
            )
        apart = divergence(logits, other, labels if isinstance(labels, Tensor) else None) * self.weight
        if self._is_scaled(kwargs.get("num_items_in_batch")):
            apart = apart / self.trainer.current_gradient_accumulation_steps  # what training_step does to others
        self._last = logits.detach()
        return loss / 2 + apart - apart.detach() / 2

    def _is_scaled(self, num_items: Any) -> bool:
        # whether training_step leaves the loss as it is under accumulation, as it decides itself
        told = getattr(self.trainer, "loss_is_scaled_for_ga", None)
        if told is not None:
            return bool(told)
        known = self.trainer.model_accepts_loss_kwargs and num_items is not None
        return known or self.trainer.compute_loss_func is not None

    def _logits(self, model: Any, outputs: Any) -> Tensor:
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
        if not isinstance(logits, Tensor) or logits.dim() < 2 or logits.shape[-1] < 2:
            found = "none" if not isinstance(logits, Tensor) else f"a tensor of shape {tuple(logits.shape)}"
            raise ValueError(
                "consistency pulls the class probabilities of two passes together, so it needs outputs with logits "
                f"(..., classes) of at least two classes; those of {type(model).__name__} have {found}. Use "
                "consistency=0, or another recipe such as 'rows'."
            )
        return logits


def _with_outputs(compute_loss: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    result = compute_loss(model, inputs, *args, **(kwargs | {"return_outputs": True}))
    return result[0], result[1]


def _copy(inputs: Any) -> Any:
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


@contextmanager
def replaced_loss(trainer: Trainer, loss: Callable[..., Any]) -> Iterator[None]:
    """Let a Trainer's loss be loss(compute_loss, *its arguments) for the time of a ``with`` block."""
    # on the instance, so that a subclass's compute_loss is replaced too
    compute_loss, own = trainer.compute_loss, trainer.__dict__.get("compute_loss")

    def replaced(*args: Any, **kwargs: Any) -> Any:
        return loss(compute_loss, *args, **kwargs)

    trainer.compute_loss = replaced  # type: ignore[method-assign]
    try:
        yield
    finally:
        del trainer.compute_loss
        if own is not None:
            trainer.compute_loss = own  # type: ignore[method-assign]
