"""What noise and scores need to know of a Trainer's run, read from its arguments and data."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from torch import nn
from torch.utils.data import Subset
from transformers import TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from hf_pacgen.config import NoiseConfig, ScoreConfig
from hf_pacgen.curvature.run_identity import agree
from hf_pacgen.data.inspection import REFUSALS
from hf_pacgen.data.losses import NothingLabeled
from hf_pacgen.data.objective import LossFunction, Objective
from hf_pacgen.data.own_loss import OwnLoss
from hf_pacgen.distributed.processes import Processes
from hf_pacgen.measures.pacgen import pacgen
from hf_pacgen.measures.ranking import AGREE, REASON
from hf_pacgen.measures.ranking import agree as agree_on_loss
from hf_pacgen.measures.session import session
from hf_pacgen.model.state import unwrap
from hf_pacgen.results.pacgen import PACGenResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the noise has to know of a training run."""

    model: nn.Module  # without wrappers
    optimizer: Any  # None where no training was set up; ``adam`` needs it
    # the training data, from which ``hutchinson`` and ρ take batches
    dataset: Any
    collate_fn: Callable[[list[Any]], Any] | None
    batch_size: int
    num_examples: int | None  # n, where it is known
    examples_per_step: int  # of the optimizer, over all processes
    max_steps: int  # of the optimizer
    processes: Processes = field(default_factory=Processes)
    clips: bool = True  # gradients, before ``on_pre_optimizer_step``
    compiled: bool = False  # or copied for every pass, by DataParallel: then hooks are run in vain
    loss_fn: LossFunction | OwnLoss | None = None  # None for the model's own
    steps_per_pass: int | None = None  # of the optimizer, through all the data; None where the data have no length
    order: str = "random"  # in which they come

    def agree_on_noise(self, config: NoiseConfig) -> None:
        """Raise on every process if two of them would draw different noise."""
        names = ("num_examples", "batch_size", "examples_per_step", "max_steps")
        mine = {"the setting": config.to_dict(), "the run's": {name: getattr(self, name) for name in names}}
        agree(self.processes, mine)

    @contextmanager
    def objective(self, config: ScoreConfig) -> Iterator[Objective]:
        """The loss of the training data, for an estimate in the middle of a step."""
        how: Any = {"loss_fn": self.loss_fn, "collate_fn": self.collate_fn, "batch_size": self.batch_size}
        how |= {"progress": False, "compare": False, "derivatives": True}
        with (
            torch.enable_grad(),
            session(self.model, self.dataset, config, **how) as made,
        ):
            yield made[0]


def refuse_unsupported(args: TrainingArguments) -> None:
    """Raise a ValueError for ZeRO-3, FSDP of another version than 2, or an optimizer that steps inside backward."""
    optimizer = str(getattr(optim := getattr(args, "optim", ""), "value", optim))
    if optimizer.endswith(("lomo", "_layerwise")):
        raise ValueError(
            f"Noise is not supported with optim={optimizer!r}, which changes the weights during the backward pass, "
            "while the noise is on them. Use an optimizer that steps after it, such as optim='adamw_torch', or train "
            "without noise."
        )
    remedy = (
        "Train with DistributedDataParallel (torchrun without a DeepSpeed or FSDP configuration), or without noise."
    )
    # the arguments ask for it, or ``accelerate launch`` has already set it up
    state = AcceleratorState() if AcceleratorState._shared_state else None
    deepspeed, fsdp = getattr(state, "deepspeed_plugin", None), getattr(state, "fsdp_plugin", None)
    if is_deepspeed_zero3_enabled() or getattr(deepspeed, "zero_stage", None) == 3:
        raise ValueError(
            "Noise is not supported with DeepSpeed ZeRO-3, which shards the parameters: they are whole only inside of "
            "its own passes. Set zero_optimization: {'stage': 2}, shard with FSDP2, or train without noise."
        )
    if getattr(args, "fsdp", None) or fsdp is not None:
        asked = (getattr(args, "fsdp_plugin_args", None) or {}).get("fsdp_version")
        version = getattr(fsdp, "fsdp_version", None) or int(asked or 1)  # as accelerate has it
        if version != 2:
            raise ValueError(
                f"Noise is not supported with FSDP of version {version}, which flattens the parameters: expected "
                f"version 2. Set fsdp_config={{'version': 2}} (fsdp_version: 2 in a configuration of accelerate). "
                f"{remedy}"
            )


def is_on(noise: NoiseConfig | None) -> bool:
    """Whether there will be any noise."""
    return noise is not None and not noise.is_silent


def agree_on_settings(
    args: TrainingArguments,
    noise: NoiseConfig | None,
    score: ScoreConfig | None,
    *,
    score_on: str | None = None,
    ema: tuple[float | None, bool] = (None, True),
) -> None:
    """Raise on every process if two of them train with different noise, or are to score in another way or moment."""
    # a process that does not score would never come to the comparison that a score begins with
    moment = {} if score is None else score.to_dict() | {"score_on": score_on}
    mine = {"the setting": {} if noise is None else noise.to_dict(), "the setting of the score:": moment}
    mine["the setting of the average:"] = dict(zip(("ema", "evaluate_ema"), ema, strict=True))
    agree(Processes(_state(args)), mine)


def refuse_unknown_metric(args: TrainingArguments) -> None:
    """Raise a ValueError where the best model is to be chosen by a score, and there will be none."""
    metric = args.metric_for_best_model
    if _is_score(metric):
        raise ValueError(
            f"metric_for_best_model={metric!r} is a score, and this PACGenTrainer computes none. Pass "
            "score=ScoreConfig(max_examples=512), for instance, or choose by another metric."
        )


def _is_score(metric: str | None) -> bool:
    metric = metric or ""
    return "pacgen" in metric or metric.removeprefix("eval_").startswith("hessian_")


class Candidates:
    """The checkpoints of a training among which a score is to choose: warns, once, where it cannot tell them apart."""

    def __init__(self, args: TrainingArguments) -> None:
        self.metric = args.metric_for_best_model if _is_score(args.metric_for_best_model) else None
        self.is_main = args.process_index == 0
        self.losses: list[float] = []  # on the training data, without dropout
        self.warned = False

    def add(self, result: PACGenResult) -> None:
        """Hear of the next one."""
        self.losses.append(result.loss)
        if self.metric is None or self.warned or agree_on_loss(self.losses):
            return
        self.warned = True
        if self.is_main:
            logger.warning(
                "metric_for_best_model=%r is to choose between checkpoints of different training loss (%.4g to %.4g; "
                "%s agrees). %s. Choose by a metric on validation data, such as 'eval_loss'.",
                *(self.metric, min(self.losses), max(self.losses), AGREE, REASON),
            )


def describe_run(
    args: TrainingArguments,
    model: nn.Module,
    *,
    optimizer: Any,
    train_dataloader: Any,
    max_steps: int,
    train_batch_size: int | None = None,
    loss_fn: LossFunction | OwnLoss | None = None,
) -> Run:
    """The facts about a run that is about to begin.

    Args:
        train_batch_size: that of a process, over its GPUs; ``auto_find_batch_size`` takes another than the arguments.
    """
    train_batch_size = train_batch_size or args.train_batch_size
    dataset = getattr(train_dataloader, "dataset", None)
    dataset = getattr(dataset, "dataset", dataset) if type(dataset).__name__ == "IterableDatasetShard" else dataset
    dataset = _of_examples(dataset)
    return Run(
        model=unwrap(model),
        optimizer=optimizer,
        dataset=dataset,
        collate_fn=getattr(train_dataloader, "collate_fn", None),
        batch_size=max(1, train_batch_size // max(1, args.n_gpu)),
        num_examples=_length(dataset),
        examples_per_step=train_batch_size * args.gradient_accumulation_steps * args.world_size,
        max_steps=max_steps,
        processes=Processes(_state(args)),
        clips=args.max_grad_norm is not None and args.max_grad_norm > 0,
        compiled=bool(args.torch_compile) or args.n_gpu > 1,
        loss_fn=loss_fn,
        steps_per_pass=_steps_per_pass(train_dataloader, args.gradient_accumulation_steps),
        order=str(getattr(args, "train_sampling_strategy", "random")),
    )


def _steps_per_pass(loader: Any, accumulation: int) -> int | None:
    length = _length(loader)
    return None if length is None else max(1, -(-length // accumulation))  # as the Trainer counts them


def rehearse_score(
    args: TrainingArguments,
    model: nn.Module,
    config: ScoreConfig,
    loader: Any,
    *,
    accelerator: Any = None,
    loss_fn: LossFunction | OwnLoss | None = None,
) -> None:
    """Look at the first batch as a score would, before the training begins.

    Raises:
        ValueError: what would be refused after hours of training.
    """
    few = dataclasses.replace(config, max_examples=args.per_device_eval_batch_size)
    try:
        with (
            torch.enable_grad(),
            session(unwrap(model), _of_examples(loader.dataset), few, **_how(args, loader, accelerator, loss_fn)),
        ):
            pass
    except NothingLabeled:
        return  # by chance, in a few examples
    except REFUSALS as error:
        raise ValueError(
            f"The training was not begun, because its score could not be computed: {error} A score takes the loss of a "
            "batch of the training data by itself, which trainers that write their own examples (GRPO, RLOO) do not "
            "give. Train without a score (score=None), and call pacgen(model, data, loss_fn=...) afterwards, with the "
            "loss as loss_fn(model, batch) -> (loss_sum, num_units)."
        ) from error


def _how(args: TrainingArguments, loader: Any, accelerator: Any, loss_fn: Any) -> dict[str, Any]:
    return {
        "loss_fn": loss_fn,
        "collate_fn": loader.collate_fn,
        "batch_size": args.per_device_eval_batch_size,
        "accelerator": accelerator or _state(args),
        "progress": False,
    }


def score_on_training_data(
    args: TrainingArguments,
    model: nn.Module,
    config: ScoreConfig,
    loader: Any,
    *,
    accelerator: Any = None,
    loss_fn: LossFunction | OwnLoss | None = None,
) -> PACGenResult:
    """PACGen of a model on the data it is trained on, with the processes of the run."""
    with torch.enable_grad():
        return pacgen(
            unwrap(model),
            _of_examples(loader.dataset),
            config=config,
            **_how(args, loader, accelerator, loss_fn),
        )


def _of_examples(dataset: Any) -> Any:
    # a Trainer takes a list for a dataset of examples; elsewhere a list is one of batches
    return Subset(dataset, range(len(dataset))) if isinstance(dataset, (list, tuple)) else dataset  # type: ignore[arg-type]


def _state(args: TrainingArguments) -> Any:
    # a second Accelerator would change the settings of the run's; its process state is all that is needed
    return PartialState() if args.world_size > 1 else None


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:
        return None
