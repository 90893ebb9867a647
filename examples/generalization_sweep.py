"""Does the score follow the generalization gap, and which form of it?  Train a grid of runs, measure everything, rank.

    python examples/generalization_sweep.py --data_dir path/to/data --output_dir sweep            # MNIST, under an hour
    python examples/generalization_sweep.py --task tweets --data_dir path/to/data --output_dir sweep_tweets   # longer
    python examples/generalization_sweep.py --smoke                                               # under a minute

Runs differ in batch size, learning rate, weight decay, width and seed, and are trained by the ordinary Trainer to one
training loss.  Then Ψ, Ψ/m, K(η) at several η, γ and ε, with ρ estimated and without, the trace, λ_max, expected
sharpness, |w| and a certificate are measured on the training data, and Kendall's τ of each with the gap (test loss -
training loss) is printed: over the whole grid, along each axis with all others fixed (the granulated coefficient of
Jiang et al. 2019, arXiv 1912.02178), and along the two axes of the article, with bootstrap intervals.

A run that has finished is not repeated; one that was killed starts again.  ``--data_dir`` has ``mnist`` and
``sentiment`` with parquet files in the schemas of ylecun/mnist and stanfordnlp/sst2.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pandas
from sweep.report import SETTINGS, report
from sweep.runs import RunSettings, results
from tqdm import tqdm
from transformers import HfArgumentParser


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    output_dir: str = field(default="sweep", metadata={"help": "Folder of the runs, the table and the figures."})
    data_dir: str = field(default="../shared/data", metadata={"help": "Folder with mnist/ and sentiment/."})
    task: str = field(default="mnist", metadata={"help": "mnist or tweets."})
    workers: int = field(default=2, metadata={"help": "Processes that train at a time, one thread each."})
    examples: int = field(default=0, metadata={"help": "Training examples; by default 2,000 images or 192 tweets."})
    seeds: int = field(
        default=3, metadata={"help": "Seeds: on MNIST of the article's two axes, on tweets of all runs."}
    )
    smoke: bool = field(default=False, metadata={"help": "A handful of short runs on scikit-learn's digits."})


def grid(arguments: Arguments) -> list[RunSettings]:
    """The whole grid, and the two axes of the article with more values and seeds."""
    common: dict[str, Any] = {"task": arguments.task, "data_dir": arguments.data_dir}
    if arguments.smoke:
        common |= {"task": "digits", "weight_decay": 0.0, "width": 4, "target_loss": 0.3, "max_steps": 2000}
        common["examples"] = arguments.examples or 256
        return [
            RunSettings(batch_size=b, learning_rate=r, seed=s, **common)
            for b, r, s in ((8, 0.2, 0), (64, 0.2, 0), (64, 0.05, 0), (8, 0.05, 0), (64, 0.2, 1))
        ]
    runs: dict[RunSettings, None] = {}
    if arguments.task == "mnist":
        common |= {"examples": arguments.examples or 2000, "target_loss": 0.01, "max_steps": 40_000}
        for seed in range(arguments.seeds):
            axes = [(b, 0.05) for b in (8, 32, 128, 512)] + [(256, r) for r in (0.1, 0.05, 0.025, 0.0125)]
            for batch_size, rate in axes:
                settings = {"batch_size": batch_size, "learning_rate": rate, "weight_decay": 0.0, "width": 6}
                runs[RunSettings(**settings, seed=seed, **common)] = None
        for batch_size, rate, decay, width, seed in product((16, 64, 256), (0.05, 0.1), (0.0, 1e-3), (6, 12), (0, 1)):
            settings = {"batch_size": batch_size, "learning_rate": rate, "weight_decay": decay}
            runs[RunSettings(**settings, width=width, seed=seed, **common)] = None
    else:
        common |= {"examples": arguments.examples or 192, "target_loss": 0.1, "max_steps": 600, "width": 0}
        for seed in range(arguments.seeds):
            for batch_size, rate, decay in product((32, 8), (4e-4, 2e-4), (5.0, 0.0)):
                settings = {"batch_size": batch_size, "learning_rate": rate, "weight_decay": decay}
                runs[RunSettings(**settings, seed=seed, **common)] = None
    return list(runs)


def main(command_line: list[str] | None = None) -> pandas.DataFrame:
    """Run what is missing, and report."""
    parser = HfArgumentParser(Arguments)  # type: ignore[arg-type]
    (arguments,) = parser.parse_args_into_dataclasses(sys.argv[1:] if command_line is None else command_line)
    if arguments.task not in ("mnist", "tweets"):
        raise SystemExit(f"--task takes mnist or tweets; got {arguments.task!r}.")
    runs = grid(arguments)
    folder = Path(arguments.output_dir)
    workers = 1 if arguments.smoke else arguments.workers
    found = list(tqdm(results(runs, str(folder), workers), total=len(runs), unit="run"))
    table = pandas.DataFrame(found).sort_values(list(SETTINGS), ignore_index=True)
    table.to_parquet(folder / "runs.parquet", index=False)
    report(table, folder)
    return table


if __name__ == "__main__":
    main()
