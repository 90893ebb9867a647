"""Kendall's τ of every measure with the generalization gap, with intervals, and the article's two trends as figures.

python examples/sweep/report.py folder/runs.parquet        # again, from the runs of generalization_sweep.py
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pandas
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.stats import kendalltau

AXES = ("batch_size", "learning_rate", "weight_decay", "width")
SETTINGS = (*AXES, "seed", "task", "examples")
FAMILIES = ("Psi", "K", "trace", "lambda_max", "sharpness", "|w|", "rho", "certificate")
DEFAULT = "K/m[n,0.1,0.1,rho of 2]"
"""K(n)/m at the default settings, which take two directions for ρ."""
SHOWN = (
    DEFAULT,
    "K/m[n,0.1,0.1,rho=median]",
    "K/m[n,0.1,0.1]",
    "K/m[n,0.1,0.1,rho=0]",
    "K/m[n,0.1,0.01,rho of 2]",
    "K/m[n,0.1,0.01,rho=median]",
    "K/m[n,0.02,0.002,rho of 2]",
    "K[n,0.1,0.1,rho of 2]",
    "Psi/m[0.1,0.1,rho of 2]",
    "Psi/m[0.1,0.01,rho of 2]",
    "trace",
    "lambda_max",
    "sharpness[0.002]",
    "sharpness[0.01]",
    "sharpness[0.05]",
    "rho[0.1,0.1,rho of 2]",
    "|w|",
    "certificate",
)
"""Measures of the table that is printed; the file has them all."""
DRAWS = 1000
"""Bootstrap samples."""


def measures(table: pandas.DataFrame) -> list[str]:
    """Columns that hold a measure."""
    return [c for c in table.columns if c.split("[")[0].removesuffix("/m") in FAMILIES]


def tau(measure: Any, gap: Any) -> float:
    """Kendall's τ, NaN where one of the two does not vary."""
    return float(kendalltau(measure, gap).statistic) if len(measure) > 1 else math.nan


def tau_interval(measure: Any, gap: Any, generator: numpy.random.Generator) -> tuple[float, float]:
    """A 95 % bootstrap interval of τ-b over runs, from the signs of all pairs."""
    signs = [numpy.sign(numpy.subtract.outer(v, v)) for v in (numpy.asarray(measure), numpy.asarray(gap))]
    drawn = []
    for _ in range(DRAWS):
        rows = generator.integers(0, len(signs[0]), len(signs[0]))
        first, second = (s[numpy.ix_(rows, rows)] for s in signs)
        pairs = math.sqrt(float(numpy.abs(first).sum()) * float(numpy.abs(second).sum()))
        drawn.append(float((first * second).sum()) / pairs if pairs else math.nan)
    if numpy.isnan(drawn).all():
        return math.nan, math.nan
    low, high = numpy.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def factorial(table: pandas.DataFrame) -> pandas.DataFrame:
    """The runs of a full grid: values whose combinations are seldom there are dropped until all are."""
    kept, axes = table, [*AXES, "seed"]
    while len(kept):
        values = {axis: kept[axis].nunique() for axis in axes}
        whole = math.prod(values.values())
        if len(kept) >= whole:
            break
        present = {(a, v): n * values[a] / whole for a in axes for v, n in kept[a].value_counts().items()}
        axis, value = min(present, key=lambda key: present[key])
        kept = kept[kept[axis] != value]
    return kept


def granulated(table: pandas.DataFrame, measure: str, axis: str) -> list[float]:
    """τ along an axis for every setting of all others."""
    others = [a for a in (*AXES, "seed") if a != axis]
    found = [tau(group[measure], group["gap"]) for _, group in table.groupby(others) if len(group) > 1]
    return [value for value in found if not math.isnan(value)]


def mean_interval(groups: list[list[float]], generator: numpy.random.Generator) -> tuple[float, float]:
    """A 95 % bootstrap interval of the mean of the means of some groups, each resampled by itself."""
    drawn = [numpy.asarray(g)[generator.integers(0, len(g), (DRAWS, len(g)))].mean(axis=1) for g in groups]
    low, high = numpy.quantile(numpy.mean(drawn, axis=0), [0.025, 0.975])
    return float(low), float(high)


def correlations(table: pandas.DataFrame) -> Iterator[dict[str, Any]]:
    """A row for every measure, over the runs that reached the training loss."""
    grid = factorial(table)  # of the runs that were tried, or one that failed would take half of the others with it
    grid, table = grid[grid["converged"]], table[table["converged"]]
    lines = dict(axes_of_the_article(table))
    for measure in measures(table):
        generator = numpy.random.default_rng(0)
        row: dict[str, Any] = {"measure": measure}
        pairs = grid[[measure, "gap"]].to_numpy()
        row["grid"] = tau(*pairs.T)
        row["grid interval"] = tau_interval(*pairs.T, generator)
        found = {axis: values for axis in AXES if (values := granulated(grid, measure, axis))}
        for axis, values in found.items():
            row[axis] = float(numpy.mean(values))
            row[f"{axis} interval"] = mean_interval([values], generator)
        row["granulated"] = float(numpy.mean([row[axis] for axis in found])) if found else math.nan
        if found:
            row["granulated interval"] = mean_interval(list(found.values()), generator)
        for name, (axis, line) in lines.items():
            values = [tau(runs[measure], runs["gap"]) for _, runs in line.sort_values(axis).groupby("seed")]
            row[f"{name} axis"] = float(numpy.mean(values)) if values else math.nan
        yield row


def axes_of_the_article(table: pandas.DataFrame) -> Iterator[tuple[str, tuple[str, pandas.DataFrame]]]:
    """The runs along batch size and along learning rate, at the commonest value of everything else."""
    base = table[(table["weight_decay"] == 0) & (table["width"] == table["width"].min())]
    for name, axis, other in (("batch", "batch_size", "learning_rate"), ("rate", "learning_rate", "batch_size")):
        counts = base.groupby(other)[axis].nunique()
        value = counts[counts == counts.max()].index.max()
        line = base[base[other] == value]
        everywhere = line.groupby(axis)["seed"].nunique() == line["seed"].nunique()
        yield name, (axis, line[line[axis].isin(everywhere.index[everywhere])])


def report(table: pandas.DataFrame, folder: Path) -> pandas.DataFrame:
    """Print the table, and write ``correlations.json``, ``table.md`` and the figures into the folder."""
    converged = table[table["converged"]]
    console = Console(width=150)
    if len(converged) < len(table):
        console.print(f"{len(table) - len(converged)} runs did not reach the training loss and are left out")
    rows = list(correlations(table))
    (folder / "correlations.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    heads = ["measure", "batch axis", "rate axis", "granulated", *AXES, "grid"]
    shown = Table(*heads, title=f"Kendall's τ with the gap, {len(converged)} runs")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        if row["measure"] in SHOWN:
            cells = [row["measure"], *(cell(row, head) for head in heads[1:])]
            shown.add_row(*map(escape, cells))
            lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    console.print(shown)
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw_trends(converged, folder)
    return pandas.DataFrame(rows)


def cell(row: dict[str, Any], head: str) -> str:
    """A value with its interval, where it has one."""
    if head not in row or math.isnan(row[head]):
        return ""
    low, high = row.get(f"{head} interval", (None, None))
    return f"{row[head]:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def draw_trends(table: pandas.DataFrame, folder: Path, measure: str = DEFAULT) -> None:
    """Gap and metric along the two axes of the article: mean over seeds, and every run as a point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, (axis, line) in axes_of_the_article(table):
        figure, left = pyplot.subplots(figsize=(6, 4), layout="constrained")
        right = left.twinx()
        for axes, column, color, label in (
            (left, "gap", "C0", "gap (test loss - training loss)"),
            (right, measure, "C1", "K(n)/m"),
        ):
            mean = line.groupby(axis)[column].mean()
            axes.plot(mean.index, mean, color=color, marker="o", label=label)
            axes.plot(line[axis], line[column], color=color, linestyle="", marker=".", alpha=0.4)
            axes.set_ylabel(label, color=color)
            axes.tick_params(axis="y", labelcolor=color)
        left.set_xscale("log", base=2)
        left.set_xticks(sorted(line[axis].unique()), [f"{value:g}" for value in sorted(line[axis].unique())])
        other = "learning_rate" if axis == "batch_size" else "batch_size"
        left.set_xlabel(axis.replace("_", " "))
        left.set_title(f"at {other.replace('_', ' ')} {line[other].iloc[0]:g}, one training loss")
        figure.savefig(folder / f"trend_{name}.png", dpi=120)
        pyplot.close(figure)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    report(pandas.read_parquet(path), path.parent)
