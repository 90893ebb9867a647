"""Does a score follow the generalization gap, and which form of it?  Train a grid of runs, measure everything, rank.

    python examples/generalization_sweep.py --data_dir path/to/data --output_dir sweep      # hours of one core
    python examples/generalization_sweep.py --tasks lenet --seeds 5 --output_dir sweep      # one part of it
    python examples/generalization_sweep.py --smoke                                         # a minute

Four grids: small LeNets on MNIST, small vision transformers on scikit-learn's digits, and the last layer of MiniLM
with a new head on 300 tweets, with the labels as they are and with a fifth of them wrong.  The runs of a grid are
trained to one training loss.  Then all forms of K(η) (ε, ρ, parts), and what people would use instead, are measured
on the training data, and Kendall's τ of each with the gap in loss and in error is written as ``tables.md``: along
each axis with everything else fixed, and their mean, the granulated coefficient of Jiang et al. 2019 (arXiv
1912.02178), with bootstrap intervals over seeds and settings.

Nothing that has been done is done again: a run that has been trained stays, and so does each measure by its name, so
adding one to ``sweep/measuring.py`` takes that one only.  ``--data_dir`` has ``mnist`` and ``sentiment`` with parquet
files in the schemas of ylecun/mnist and stanfordnlp/sst2.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pandas
from rich.console import Console
from rich.markdown import Markdown
from sweep.grids import TASKS, grid
from sweep.measuring import MEASURES
from sweep.report import report
from sweep.table import perform, table_of
from tqdm import tqdm
from transformers import HfArgumentParser

SEEDS = {"lenet": 5, "vit": 5, "encoder": 3, "wrong": 3, "smoke": 1}


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    output_dir: str = field(default="sweep", metadata={"help": "Folder of the runs, the tables and the figures."})
    data_dir: str = field(default="../shared/data", metadata={"help": "Folder with mnist/ and sentiment/."})
    tasks: list[str] = field(default_factory=lambda: list(TASKS), metadata={"help": f"Of {', '.join(TASKS)}."})
    seeds: int = field(default=0, metadata={"help": "Seeds of every setting; by default 5, of encoders 3."})
    workers: int = field(default=2, metadata={"help": "Processes at a time, one thread each."})
    stage: str = field(default="all", metadata={"help": "train, report (what is there), or all."})
    smoke: bool = field(default=False, metadata={"help": "A handful of short runs on scikit-learn's digits."})


def measures() -> list[str]:
    """All measures that can be taken: WeightWatcher's needs its package."""
    there = importlib.util.find_spec("weightwatcher") is not None
    return [name for name in MEASURES if there or name != "alpha"]


def main(command_line: list[str] | None = None) -> pandas.DataFrame:
    """Do what is missing, and report."""
    parser = HfArgumentParser(Arguments)  # type: ignore[arg-type]
    (arguments,) = parser.parse_args_into_dataclasses(sys.argv[1:] if command_line is None else command_line)
    if arguments.stage not in ("train", "all", "report"):
        raise SystemExit(f"--stage takes train, all or report; got {arguments.stage!r}.")
    tasks = ["smoke"] if arguments.smoke else arguments.tasks
    if unknown := set(tasks) - set(SEEDS):
        raise SystemExit(f"--tasks takes some of {', '.join(TASKS)}; got {', '.join(sorted(unknown))}.")
    runs = [run for task in tasks for run in grid(task, arguments.data_dir, arguments.seeds or SEEDS[task])]
    folder = Path(arguments.output_dir)
    if arguments.stage != "report":
        names = measures() if arguments.stage == "all" else None
        workers = 1 if arguments.smoke else arguments.workers
        for _ in tqdm(perform(runs, folder, workers, names), total=len(runs), unit="run"):
            pass
    table = table_of(runs, folder)
    if arguments.stage != "train":
        table.to_parquet(folder / "runs.parquet", index=False)
        report(table, folder)
        Console(width=170).print(Markdown((folder / "tables.md").read_text(encoding="utf-8")))
    return table


if __name__ == "__main__":
    main()
