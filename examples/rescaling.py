"""How much each measure moves when a network is rescaled without changing what it computes (Dinh et al. 2017).

    python examples/rescaling.py --data_dir path/to/data --output rescaling.json
    python examples/rescaling.py --smoke                                             # on scikit-learn's digits

The small LeNet of the sweep has rectifiers, so multiplying the weights and biases of a layer by α and the weights of
the next by 1/α leaves every output as it was.  A measure of generalization should not care.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors.torch import save_file
from sweep.grids import RunSettings, grid
from sweep.measuring import MEASURES, measured
from sweep.models import LeNet, cut, data_of
from sweep.report import OLD, measures_of
from sweep.table import table_of
from sweep.training import mean_loss, restored, trained
from transformers import HfArgumentParser

FACTORS = (1.0, 2.0, 5.0)
SHOWN = (
    "K/m" + OLD,
    "K/m[0, median]",
    "K/m[1 rms, median]",
    "kl_excess/m" + OLD,
    "kl_excess/m[0, median]",
    "kl_excess/m[1 rms, median]",
    "kl_curvature/m",
    "sum H w^2",
    "trace",
    "lambda_max",
    "relative sharpness[0.3]",
    "adaptive sharpness[0.2]",
    "takeuchi[Tr C/Tr H]",
    "|w|",
    "rho" + OLD,
)


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


def measure(run: RunSettings, folder: Path) -> dict[str, dict[str, float]]:
    """All measures of a run's network at every factor, each in a folder of its own."""
    trained(run, folder)
    data = cut(data_of(run)["train"], 500)
    found, losses = {}, []
    for factor in FACTORS:
        model = restored(run, folder)
        rescale(model, factor)  # type: ignore[arg-type]
        losses.append(mean_loss(model, data)[0])
        there = folder / f"{factor:g}"
        (there / run.name).mkdir(parents=True)
        shutil.copy(folder / run.name / "training.json", there / run.name)
        save_file(model.state_dict(), there / run.name / "weights.safetensors")
        measured(run, there, [name for name in MEASURES if name != "alpha"])
        table = table_of([run], there)
        found[f"{factor:g}"] = {name: float(table[name].iloc[0]) for name in measures_of(table)}
    if max(losses) - min(losses) > 1e-4:
        raise SystemExit(f"Rescaling changed the loss: {losses}.")
    return found


def main(command_line: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Train one network, rescale and measure it."""
    parser = HfArgumentParser(Arguments)  # type: ignore[arg-type]
    (arguments,) = parser.parse_args_into_dataclasses(sys.argv[1:] if command_line is None else command_line)
    torch.set_num_threads(1)  # as in the sweep: the order of sums decides which network is found
    with tempfile.TemporaryDirectory() as folder:
        found = measure(grid("smoke" if arguments.smoke else "lenet", arguments.data_dir, 1)[0], Path(folder))
    table = Table("measure", *(f"α = {factor}" for factor in found), title="The same function, rescaled")
    for name in (name for name in SHOWN if name in found["1"]):
        table.add_row(escape(name), *(f"{values[name]:.4g}" for values in found.values()))
    Console().print(table)
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
