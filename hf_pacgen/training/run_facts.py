"""What noise and scores need to know of a Trainer's run, read from its arguments and data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from hf_pacgen.config import NoiseConfig, ScoreConfig
from hf_pacgen.curvature.run_identity import agree
from hf_pacgen.data.objective import LossFunction
from hf_pacgen.distributed.processes import Processes
from hf_pacgen.measures.pacgen import pacgen
from hf_pacgen.model.state import unwrap
from hf_pacgen.results.pacgen import PACGenResult

__all__ = [
    "Run",
    "agree_on_settings",
    "describe_run",
    "refuse_unsupported",
    "refuse_unknown_metric",
    "score_on_training_data",
]


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


def refuse_unsupported(args: TrainingArguments) -> None:
    """Raise where noise cannot be taken off before the weights change, or they are partitioned other than by FSDP2.

    Raises:
        ValueError: DeepSpeed, or FSDP of another version than 2, is on; an optimizer that steps inside backward.
    """
    optimizer = str(getattr(optim := getattr(args, "optim", ""), "value", optim))
    if optimizer.endswith(("lomo", "_layerwise")):
        raise ValueError(
            f"Noise is not supported with optim={optimizer!r}, which changes the weights during the backward pass, "
            "while the noise is on them. Use an optimizer that steps after it, such as optim='adamw_torch', or train "
            "without noise."
        )
    state = AcceleratorState() if AcceleratorState._shared_state else None
    remedy = (
        "Train with DistributedDataParallel (torchrun without a DeepSpeed or FSDP configuration), or without noise."
    )
    if is_deepspeed_zero3_enabled():
        raise ValueError(f"Noise is not supported with DeepSpeed ZeRO-3, which shards the parameters. {remedy}")
    if getattr(args, "deepspeed", None) or getattr(state, "deepspeed_plugin", None) is not None:
        raise ValueError(
            "Noise is not supported with DeepSpeed, which partitions gradients and optimizer states (and with ZeRO-3 "
            f"the parameters). {remedy}"
        )
    if getattr(args, "fsdp", None) or getattr(state, "fsdp_plugin", None) is not None:
        plugin = getattr(state, "fsdp_plugin", None)
        asked = (getattr(args, "fsdp_plugin_args", None) or {}).get("fsdp_version")
        version = getattr(plugin, "fsdp_version", None) or int(asked or 1)  # as accelerate has it
        if version != 2:
            raise ValueError(
                f"Noise is not supported with FSDP of version {version}, which flattens the parameters: expected "
                f"version 2. Set fsdp_config={{'version': 2}} (fsdp_version: 2 in a configuration of accelerate). "
                f"{remedy}"
            )


def agree_on_settings(args: TrainingArguments, noise: NoiseConfig | None, score: ScoreConfig | None) -> None:
    """Raise on every process if two of them train with different noise, or are to score in different ways."""
    # a process that does not score would never come to the comparison that a score begins with
    mine = {"the setting": noise, "the setting of the score:": score}
    agree(Processes(_state(args)), {group: {} if c is None else c.to_dict() for group, c in mine.items()})


def refuse_unknown_metric(args: TrainingArguments) -> None:
    """Raise where the best model is to be chosen by a score, and there will be none.

    Raises:
        ValueError: ``metric_for_best_model`` is one of PACGen's.
    """
    metric = args.metric_for_best_model or ""
    if "pacgen" in metric or metric.removeprefix("eval_").startswith("hessian_"):
        raise ValueError(
            f"metric_for_best_model={metric!r} is a score, and this PACGenTrainer computes none. Pass "
            "score=ScoreConfig(max_examples=512), for instance, or choose by another metric."
        )


def describe_run(
    args: TrainingArguments,
    model: nn.Module,
    *,
    optimizer: Any,
    train_dataloader: Any,
    max_steps: int,
    loss_fn: LossFunction | None = None,
) -> Run:
    """The facts about a run that is about to begin."""
    dataset = getattr(train_dataloader, "dataset", None)
    dataset = getattr(dataset, "dataset", dataset) if type(dataset).__name__ == "IterableDatasetShard" else dataset
    dataset = _of_examples(dataset)
    return Run(
        model=unwrap(model),
        optimizer=optimizer,
        dataset=dataset,
        collate_fn=getattr(train_dataloader, "collate_fn", None),
        batch_size=args.per_device_train_batch_size,
        num_examples=_length(dataset),
        examples_per_step=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        max_steps=max_steps,
        processes=Processes(_state(args)),
        clips=args.max_grad_norm is not None and args.max_grad_norm > 0,
        compiled=bool(args.torch_compile),
        loss_fn=loss_fn,
    )


def score_on_training_data(
    args: TrainingArguments,
    model: nn.Module,
    config: ScoreConfig,
    *,
    dataset: Any,
    collate_fn: Any,
    accelerator: Any = None,
    loss_fn: LossFunction | None = None,
) -> PACGenResult:
    """PACGen of a model on the data it is trained on, with the processes of the run."""
    with torch.enable_grad():
        return pacgen(
            unwrap(model),
            _of_examples(dataset),
            config=config,
            loss_fn=loss_fn,
            collate_fn=collate_fn,
            batch_size=args.per_device_eval_batch_size,
            accelerator=accelerator or _state(args),
            progress=False,
        )


class _Examples(Dataset[Any]):
    def __init__(self, examples: Any) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        return self.examples[index]


def _of_examples(dataset: Any) -> Any:
    """A Trainer takes a list for a dataset of examples; elsewhere a list is one of batches."""
    return _Examples(dataset) if isinstance(dataset, (list, tuple)) else dataset


def _state(args: TrainingArguments) -> Any:
    # a second Accelerator would change the settings of the run's; its process state is all that is needed
    return PartialState() if args.world_size > 1 else None


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:
        return None
