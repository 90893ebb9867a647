"""One pass over data by a model in evaluation mode, shared by all processes, without any derivative."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from hf_pacgen.certify.validity import check_batch_norm, check_sampling
from hf_pacgen.curvature.run_identity import agree, identity
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.collation import AsTheTrainer
from hf_pacgen.distributed.shards import Shards
from hf_pacgen.measures.session import Tick, processes_of
from hf_pacgen.model.state import preserved, unwrap

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Visit:
    """A model in evaluation mode and the batches of some data.

    Unlike the session of a measure it asks for no loss, no trainable weight and no second pass.
    """

    model: nn.Module
    batches: Batches
    tick: Tick

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        first = next(chain(self.model.parameters(), self.model.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @torch.no_grad()
    def each(self, look: Callable[[int, Any], T]) -> list[T]:
        """``look(index, batch)`` of every batch of all processes, in the order of the batches."""
        processes = self.batches.processes
        with processes.together():
            found = []
            for index, batch in self.batches:
                found.append((index, look(index, batch)))
                self.tick()
        # by their numbers, so that any number of processes has the same values in the same order
        return [value for _, value in sorted(chain(*processes.gather(found)), key=itemgetter(0))]


@contextmanager
def visiting(
    model: nn.Module,
    data: Any,
    *,
    stage: str,
    seed: int = 0,
    max_examples: int | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Iterator[Visit]:
    """The visit of some data; on the way out modes, buffers, gradients, random state and the data are as before.

    Raises:
        ValueError: a sharded model, batch-norm by the statistics of a batch, examples drawn with replacement,
            processes with different models or data, and what :class:`Batches` refuses.
    """
    model, everyone = unwrap(model), processes_of(model, accelerator)
    if collate_fn is not None:
        collate_fn = AsTheTrainer(collate_fn, model)
    with everyone.together():
        if Shards(model).active:
            raise ValueError(
                "The model is sharded over processes by fully_shard: expected a whole one in every process. Gather "
                "the weights into one process."
            )
    with preserved(model):
        with everyone.together():
            model.eval()  # what is promised is the model as it answers, without dropout
            check_batch_norm(model)
            check_sampling(data)
            scope: Any = {"max_examples": max_examples, "seed": seed, "processes": everyone}
            batches = Batches(data, model=model, batch_size=batch_size, collate_fn=collate_fn, **scope)
            mine = identity(model, batches, None, "") if everyone.size > 1 else {}
        agree(everyone, mine)
        tick = Tick(batches, progress)
        tick.stage(stage, passes=1)
        try:
            yield Visit(model, batches, tick)
        finally:
            tick.close()
            batches.close()


def left_out(data: Any) -> int:
    """Examples that a loader leaves out of its last batch."""
    if not isinstance(data, DataLoader) or not data.drop_last or data.batch_size is None:
        return 0
    size = len(data.dataset) if hasattr(data.dataset, "__len__") else 0
    return size % data.batch_size
