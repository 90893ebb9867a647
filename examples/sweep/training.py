"""The first stage of a run: train to one loss, and keep the weights and the losses."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sweep.grids import RunSettings
from sweep.models import Batch, by_length, cut, data_of, model_of, take, trim
from torch import Tensor, nn

LOOKS = 500
"""Examples in a batch when a loss is taken."""


class Watch:
    """When to look at the training loss: seldom while the running mean of the batches' losses is far above the target.

    Args:
        target: the loss at which to stop.
        steps_an_epoch: of the run; near the target the loss is looked at ``looks`` times an epoch.
        least: steps between two looks.
        near: times the target below which the running mean counts as near (dropout makes it larger than the loss).
    """

    def __init__(self, target: float, steps_an_epoch: float, near: float, looks: int, least: int = 1) -> None:
        self.target, self.near = target, near
        self.often = max(least, round(steps_an_epoch / looks))
        self.seldom = max(1, round(4 * steps_an_epoch))
        self.mean: float | None = None
        self.next = 0

    def due(self, step: int, loss: float) -> bool:
        """Whether to look after this step, whose batch had this loss."""
        self.mean = loss if self.mean is None else 0.9 * self.mean + 0.1 * loss
        far = self.mean > self.near * self.target
        if step < self.next + (self.seldom - self.often if far else 0):
            return False
        self.next = step + self.often
        return True


def batches(run: RunSettings) -> Iterator[Tensor]:
    """Rows of one batch after another, in a new order every epoch; a last batch that is not full is left out."""
    generator = torch.Generator().manual_seed(run.seed)
    while True:
        order = torch.randperm(run.examples, generator=generator)
        yield from order[: run.examples // run.batch_size * run.batch_size].split(run.batch_size)


def train(run: RunSettings, data: Batch) -> tuple[nn.Module, int]:
    """The model at the first look at which its loss is at most the target, and the steps it took."""
    model = model_of(run).train()
    if run.task == "lenet":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster, on a processor
    if run.task in ("lenet", "smoke"):
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), lr=run.learning_rate, weight_decay=run.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate, weight_decay=run.weight_decay)
    epoch = run.examples / run.batch_size
    if run.task in ("encoder", "wrong"):  # few steps, in which the running mean lags behind
        watch = Watch(run.target_loss, epoch, near=5.0, looks=12)
    else:
        watch = Watch(run.target_loss, epoch, near=1.5 if run.dropout == 0 else 4.0, looks=4, least=5)
    whole = cut(by_length(data), LOOKS)
    step = 0
    for step, rows in enumerate(batches(run), 1):
        loss = model(**trim(take(data, rows))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()
        if watch.due(step, value) and mean_loss(model, whole)[0] <= run.target_loss:
            break
        if step >= run.max_steps or not math.isfinite(value):
            break
    return model.eval(), step


@torch.no_grad()
def mean_loss(model: nn.Module, batches: list[Batch]) -> tuple[float, float]:
    """Mean loss and error in evaluation mode."""
    mode = model.training
    model.eval()
    loss = wrong = count = 0.0
    for batch in batches:
        outputs = model(**batch)
        size = len(batch["labels"])
        loss += outputs.loss.item() * size
        wrong += (outputs.logits.argmax(-1) != batch["labels"]).sum().item()
        count += size
    model.train(mode)
    return loss / count, wrong / count


def trained(run: RunSettings, folder: Path) -> dict[str, Any]:
    """Train now, or read what an earlier call has written: ``weights.safetensors``, then ``training.json``."""
    path = folder / run.name / "training.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data_of(run)
    began = time.perf_counter()
    model, steps = train(run, data["train"])
    found: dict[str, Any] = {k: v for k, v in asdict(run).items() if k != "data_dir"}
    found |= {"steps": steps, "training seconds": time.perf_counter() - began}
    for part in ("train", "held out", "test"):
        found[f"{part} loss"], found[f"{part} error"] = mean_loss(model, cut(by_length(data[part]), LOOKS))
    found["gap in loss"] = found["test loss"] - found["train loss"]
    found["gap in error"] = found["test error"] - found["train error"]
    found["converged"] = found["train loss"] <= run.target_loss
    save_file({name: w.contiguous() for name, w in model.state_dict().items()}, path.with_name("weights.safetensors"))
    write(path, found)
    return found


def restored(run: RunSettings, folder: Path) -> nn.Module:
    """The trained model, in evaluation mode."""
    model = model_of(run)
    model.load_state_dict(load_file(folder / run.name / "weights.safetensors"))
    return model.eval()


def write(path: Path, found: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(found), encoding="utf-8")
    os.replace(temporary, path)
