"""What every measurement of a model begins with: batches, an inspected objective, and a model left as it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn
from tqdm.auto import tqdm

from hf_pacgen.config import ScoreConfig
from hf_pacgen.config.settings import Config
from hf_pacgen.curvature.checkpoint import Checkpoint
from hf_pacgen.curvature.run_identity import BUFFERS, differences, identity
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.objective import LossFunction, Objective
from hf_pacgen.data.sharded_objective import ShardedObjective
from hf_pacgen.distributed.processes import Processes
from hf_pacgen.distributed.shards import Shards
from hf_pacgen.model.state import preserved, unwrap

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["check_arguments", "measuring", "next_stage", "progress_bar", "ticker"]


@contextmanager
def measuring(
    model: nn.Module,
    data: Any,
    config: ScoreConfig,
    loss_fn: LossFunction | None,
    collate_fn: Callable[[list[Any]], Any] | None,
    batch_size: int,
    accelerator: Accelerator | None,
    *,
    confirm: bool = True,
    shards: bool = False,
) -> Iterator[Objective]:
    """An inspected objective; on the way out the model, the random state and the data are as before.

    ``shards`` says whether the measurement can be of a model that is sharded over processes.
    """
    check_arguments(model, config, ScoreConfig)
    model = unwrap(model)
    sharded = Shards(model)
    processes = all_processes = Processes(accelerator)
    if sharded.active:
        if not shards:
            raise ValueError(
                "The model is sharded over processes by fully_shard: expected a whole one, because only the score and "
                "its parts are made for shards. Gather the weights into one process."
            )
        all_processes = sharded.processes
        processes = all_processes.as_one()
    with sharded.as_found(), preserved(model):
        with processes.together():
            batches = Batches(
                data,
                model=model,
                batch_size=batch_size,
                collate_fn=collate_fn,
                max_examples=config.max_examples,
                seed=config.seed,
                processes=processes,
            )
            objective = (ShardedObjective if sharded.active else Objective)(model, batches, loss_fn=loss_fn)
            objective.inspect(confirm=confirm)
        _refuse_differences(objective, config, all_processes)
        try:
            with objective.rows.watching():
                yield objective
        finally:
            batches.close()


def check_arguments(model: Any, config: Any, kind: type[Config]) -> None:
    """Raise if the model is no module, or the settings are none of that kind."""
    if not isinstance(model, nn.Module):
        what = type(model).__name__
        if isinstance(model, (str, os.PathLike)):
            remedy = "Load it with from_pretrained(), or score it by its name with the command 'hf-pacgen score'"
        elif isinstance(getattr(model, "model", None), nn.Module):
            remedy = f"Pass {'trainer.model' if 'Trainer' in what else 'the model inside, its attribute model'}"
        else:
            remedy = "Pass a PreTrainedModel, a PEFT model, or another torch.nn.Module"
        raise TypeError(f"model must be a loaded model, a torch.nn.Module; got {what}. {remedy}.")
    if not isinstance(config, kind):
        remedy = f"{kind.__name__}(**config)" if isinstance(config, Mapping) else f"{kind.__name__}(...)"
        raise TypeError(f"config must be a {kind.__name__}; got {type(config).__name__}. Pass config={remedy}.")


def ticker(objective: Objective, bar: Any, checkpoint: Checkpoint | None = None) -> Callable[[], None]:
    """What is called after every batch."""

    def tick() -> None:
        bar.update()
        objective.batches.processes.check()
        if checkpoint is not None:
            checkpoint.stop_if_asked()

    return tick


def _refuse_differences(objective: Objective, config: ScoreConfig, processes: Processes) -> None:
    """Raise on every process if two of them have different settings, models or data."""
    if processes.size == 1:
        return
    with processes.together():
        mine = {group: values for group, values in identity(objective, config).items() if group != BUFFERS}
    first, *others = processes.gather(mine)
    for rank, other in enumerate(others, start=1):
        found = differences(first, other, there="in process 0", here=f"in process {rank}")
        if found:
            raise ValueError(
                f"Process {rank} has another model, data or settings than process 0. These differ: {found}. "
                "Load the same model and the whole data in every process; the batches are shared out here."
            )


def progress_bar(objective: Objective, progress: bool, what: str = "", *, passes: int | None = None) -> Any:
    """A bar over batches, on the main process only, in its first stage if ``what`` names one."""
    bar = tqdm(disable=not (progress and objective.batches.processes.is_main), leave=False, unit=" batches")
    if what:
        next_stage(bar, objective, what, passes=passes)
    return bar


def next_stage(bar: Any, objective: Objective, what: str, *, passes: int | None = None) -> None:
    """Count from 0 again, up to the batches of ``passes`` passes where both numbers are known."""
    count = objective.batches.count() if passes is not None else None
    bar.reset(total=None if count is None or passes is None else count * passes)
    bar.set_description_str(what)
