"""Whose loss is measured where nobody passes a ``loss_fn``: the model's own, or that of its Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hf_pacgen.data.contents import LABEL_NAMES, labels_of
from hf_pacgen.model.state import base_model

__all__ = ["ModelLoss", "OwnLoss", "label_names_of"]


class OwnLoss:
    """A loss that comes out of a call as one number a batch, most often a mean.  What it is a mean of, is found out.

    ``loss_fn`` gives a sum and a number of units instead, and is taken at its word.

    Attributes:
        name: what it is called in sentences.
        label_names: under which a batch may have its labels.
        batch_size: that of the training, where that is known: a loss that depends on the batching is taken so.
    """

    name = "the model's own loss"
    label_names: tuple[str, ...] = LABEL_NAMES
    batch_size: int | None = None

    def prepare(self, batch: Any) -> Any:
        """The batch as the model gets it."""
        return batch

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor | None, Any]:
        """The loss of a prepared batch, None where there is none, and the outputs of the model that it was made of."""
        raise NotImplementedError(f"{type(self).__name__} must say what its loss is: define __call__.")


class ModelLoss(OwnLoss):
    """The loss that a model gives when it gets labels."""

    def __init__(self, label_names: tuple[str, ...] = LABEL_NAMES, *, prepared_by: OwnLoss | None = None) -> None:
        self.label_names = label_names
        self._prepared_by = prepared_by

    def prepare(self, batch: Any) -> Any:
        """The batch as the model gets it."""
        return batch if self._prepared_by is None else self._prepared_by.prepare(batch)

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor | None, Any]:
        """The loss and the outputs; of outputs that are a tuple, the loss comes first if there were labels."""
        outputs = model(**batch)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        if loss is None and isinstance(outputs, (tuple, list)) and labels_of(batch, self.label_names) is not None:
            loss = outputs[0] if outputs and isinstance(outputs[0], Tensor) and outputs[0].ndim <= 1 else None
        return (loss.mean() if isinstance(loss, Tensor) else None), outputs


def label_names_of(model: nn.Module) -> tuple[str, ...]:
    """The names of labels in the signature of a model's forward pass, the usual ones first."""
    parameters = inspect.signature(base_model(model).forward).parameters
    own = [name for name in parameters if "label" in name or name in ("start_positions", "end_positions")]
    return tuple(dict.fromkeys((*LABEL_NAMES, *own)))
