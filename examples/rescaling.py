"""How much each measure moves when a network is rescaled without changing what it computes (Dinh et al. 2017).

    python examples/rescaling.py --data_dir path/to/data --output rescaling.json
    python examples/rescaling.py --smoke                                             # on scikit-learn's digits

The small LeNet of the sweep has rectifiers, so multiplying the weights and biases of a layer by α and the weights of
the next by 1/α leaves every output as it was.  A measure of generalization should not care; curvature alone does.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sweep.models import LeNet, cut
from sweep.report import SHOWN
from sweep.runs import RunSettings, data_of, mean_loss, measure, train
from transformers import HfArgumentParser

FACTORS = (1.0, 2.0, 5.0)


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    data_dir: str = field(default="../shared/data", metadata={"help": "Folder with mnist/."})
    output: str = field(default="", metadata={"help": "Write the measures to this JSON file."})
    smoke: bool = field(default=False, metadata={"help": "A short training on scikit-learn's digits."})


def rescale(model: LeNet, factor: float) -> None:
    """Multiply the first layer by a factor and divide the second by it, and so on through the network."""
    with torch.no_grad():
        for layer, following in ((model.first, model.second), (model.third, model.classifier)):
            layer.weight.mul_(factor)
            if layer.bias is not None:
                layer.bias.mul_(factor)
            following.weight.div_(factor)


def main(command_line: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Train one network, rescale and measure it."""
    parser = HfArgumentParser(Arguments)  # type: ignore[arg-type]
    (arguments,) = parser.parse_args_into_dataclasses(sys.argv[1:] if command_line is None else command_line)
    common: dict[str, Any] = {"learning_rate": 0.1, "weight_decay": 0.0, "width": 6, "seed": 0}
    common |= {"data_dir": arguments.data_dir, "batch_size": 32}
    if arguments.smoke:
        run = RunSettings(task="digits", examples=256, target_loss=0.3, max_steps=2000, **common)
    else:
        run = RunSettings(task="mnist", examples=2000, target_loss=0.01, max_steps=40_000, **common)
    torch.set_num_threads(1)  # as in the sweep: the order of sums decides which network is found
    data, _ = data_of(run)
    model, _ = train(run, data)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found: dict[str, dict[str, float]] = {}
    losses = []
    for factor in FACTORS:
        model.load_state_dict(state)
        rescale(model, factor)  # type: ignore[arg-type]
        losses.append(mean_loss(model, cut(data, 500))[0])
        found[f"{factor:g}"] = measure(run, model, data)
    if max(losses) - min(losses) > 1e-4:
        raise SystemExit(f"Rescaling changed the loss: {losses}.")
    table = Table("measure", *(f"α = {factor}" for factor in found), title="The same function, rescaled")
    for name in (name for name in SHOWN if name in found["1"]):
        table.add_row(escape(name), *(f"{values[name]:.4g}" for values in found.values()))
    Console().print(table)
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
