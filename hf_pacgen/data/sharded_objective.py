"""The empirical loss of a model whose weights are sharded by FSDP2."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_pacgen.data.batches import Batches
from hf_pacgen.data.contents import count_examples, take
from hf_pacgen.data.losses import BatchLoss, LossFunction
from hf_pacgen.data.objective import Objective
from hf_pacgen.data.own_loss import OwnLoss
from hf_pacgen.distributed.processes import send_to_device
from hf_pacgen.distributed.shards import Shards

__all__ = ["ShardedObjective"]


class ShardedObjective(Objective):
    """An :class:`Objective` for all processes together: each computes its share of the examples of every batch.

    All processes see the same batches, losses and units; gradients and displacements are those of their own shards.
    """

    def __init__(
        self, model: nn.Module, batches: Batches, shards: Shards, *, loss_fn: LossFunction | OwnLoss | None = None
    ) -> None:
        self.shards = shards
        super().__init__(model, batches, loss_fn=loss_fn, finite=shards.all_finite)

    def loss(self, batch: Any, index: int) -> BatchLoss:
        """The summed loss of one batch, over the examples of all processes."""
        rows, weight = self._share(batch)
        self.shards.reshard()
        mine = super().loss(take(batch, rows), index)
        result = BatchLoss(*self.shards.whole_loss(mine.total, mine.units, weight))
        super()._require_finite(result, index)
        return result

    def sampled_loss(self, batch: Mapping[str, Any], index: int, key: int) -> tuple[Tensor, BatchLoss]:
        """The summed loss on labels drawn from the model's predictions, the same as one process draws."""
        batch = send_to_device(batch, self.device)
        rows, weight = self._share(batch)
        part = take(batch, rows)
        self.shards.reshard()
        scores, labels = self._scores(part, index)
        true = self._true(scores, labels, index)
        result = BatchLoss(*self.shards.whole_loss(true.total, true.units, weight))
        super()._require_finite(result, index)
        generator = torch.Generator(device=scores.device).manual_seed(key)
        first = self._places(take(batch, list(range(rows[0])))) if rows[0] else 0
        with torch.no_grad():
            # what torch.multinomial does for one draw: a race of exponential clocks, here run for the whole batch
            clocks = scores.new_empty((self._places(batch), scores.shape[-1])).exponential_(generator=generator)
            drawn = (scores.softmax(-1) / clocks[first : first + len(scores)]).argmax(-1)
        sampled = self._sampled(scores, labels, drawn)
        return sampled * (weight * self.shards.processes.size), result

    def _places(self, batch: Any) -> int:
        """Labels that count, however much each weighs."""
        bare: Any = self.entropy  # there is one, or no scores were had
        return int(dataclasses.replace(bare, weights=None).units(self._labels(batch)))

    _compares = False
    """What one process alone found would leave the others waiting."""

    def _share(self, batch: Any) -> tuple[list[int], float]:
        count = count_examples(batch)
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if self.loss_fn is not None or not isinstance(labels, Tensor) or len(labels) != count:
            return self.shards.share([True] * count)
        return self.shards.share([self.units({"labels": labels[i : i + 1]}) > 0 for i in range(count)])

    def _require_finite(self, result: BatchLoss, index: int) -> None:
        """Nothing: a share that one process alone refused would leave the others waiting."""
