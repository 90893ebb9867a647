"""The tables and figures of ``generalization_sweep.py``, from its runs.

python examples/sweep/report.py folder        # again, from the runs.parquet that is there
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy
import pandas

sys.path.insert(0, str(Path(__file__).parents[1]))

from sweep.forms import BOXES
from sweep.ranking import AXES, Row, article_axes, correlations, explained, factorial

RHO = ("max of 2", "median")
NEW = "[1 rms, median]"
"""ε and ρ of the defaults."""
OLD = "[0.1, max of 2]"
"""ε and ρ of the defaults of release 0.1: γ = ε = 0.1 and the larger of two displacements."""
GAPS = ("gap in loss", "gap in error", "test loss", "test error")
PEERS = (
    "trace",
    "trace of Gauss-Newton",
    "lambda_max",
    "sum H w^2",
    *(f"relative sharpness[{level:g}]" for level in (0.03, 0.1, 0.3, 1.0)),
    "adaptive sharpness[0.05]",
    "adaptive sharpness[0.2]",
    "takeuchi[Tr C/Tr H]",
    "takeuchi[sum C/(H + mean H)]",
    "|w|",
    "distance from initialization",
    "alpha",
    "held out loss",
    "held out error",
)
"""What is measured beside K(η)."""
NAMES = {
    "lenet": "LeNets on MNIST",
    "vit": "Vision transformers on digits",
    "encoder": "Fine-tuned encoders, labels as they are",
    "wrong": "Fine-tuned encoders, a fifth of the labels wrong",
    "smoke": "A handful of small LeNets on digits",
}


def measures_of(table: pandas.DataFrame) -> list[str]:
    """Columns that hold a measure, forms of K(η) first."""
    forms = [f"{form}[{box}, {rho}]" for form in ("K/m", "kl_excess/m", "Psi/m", "rho") for box in BOXES for rho in RHO]
    forms += [f"{form}[{box}]" for form in ("hessian/m", "weights/m") for box in BOXES]
    forms += ["kl_curvature/m", "kl_curvature/m of Gauss-Newton"]
    return [name for name in (*forms, *PEERS) if name in table.columns]


def cell(row: Row, head: str) -> str:
    """A value with its interval, where it has one."""
    if head not in row or math.isnan(row[head]):
        return ""
    low, high = row.get(f"{head} interval", (None, None))
    return f"{row[head]:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines) + "\n"


def ranked(rows: dict[str, list[Row]], every: bool = False) -> str:
    """τ of the measures with the gap in loss, best first, and beside it the granulated τ with the gap in error."""
    loss, error = rows["gap in loss"], {row["measure"]: row for row in rows["gap in error"]}
    axes = [axis for axis in AXES if any(axis in row for row in loss)]
    lines = [f"{name} axis" for name in ("batch", "rate") if any(f"{name} axis" in row for row in loss)]
    heads = ["measure", "granulated, gap in loss", *axes, *lines, "granulated, gap in error"]
    cells = []
    for row in sorted(loss, key=lambda row: -row.get("granulated", -2.0)):
        if every or not row["measure"].startswith(("hessian", "weights", "Psi")):
            whole = {**row, **{f"{a} interval": (None, None) for a in axes}}
            cells.append(
                [row["measure"], cell(row, "granulated")]
                + [cell(whole, axis) for axis in axes]
                + [cell(row, line) for line in lines]
                + [cell(error.get(row["measure"], {}), "granulated")]
            )
    return markdown(heads, cells)


def made_of(table: pandas.DataFrame) -> list[Row]:
    """What K(η) is made of over the runs of a task, in every box: R² on log ρ, the parts, the Hessian's share."""
    rows = []
    for box in BOXES:
        for rho in RHO:
            key = f"[{box}, {rho}]"
            if f"K/m{key}" not in table.columns:
                continue
            known = table[table[f"K/m{key}"].notna()]
            bends = numpy.log(known[f"rho{key}"])
            share = known[f"share of the Hessian{key}"]
            rows.append(
                {
                    "epsilon": box,
                    "rho": rho,
                    "R2 of K/m on log rho": explained(known[f"K/m{key}"], bends),
                    "R2 of kl_excess/m on log rho": explained(known[f"kl_excess/m{key}"], bends),
                    "R2 of K/m on the saturated part": explained(known[f"K/m{key}"], known[f"weights/m[{box}]"]),
                    "saturated part of K": float((known[f"weights/m[{box}]"] / known[f"K/m{key}"]).median()),
                    "the Hessian's share of kl_excess": float(share.median()),
                    "its range": [float(share.min()), float(share.max())],
                }
            )
    return rows


def repeated(table: pandas.DataFrame) -> list[Row]:
    """How far another seed moves a score, beside its spread over the full grid."""
    grid, rows = factorial(table), []
    for name in (c for c in table.columns if c.startswith("deviation over seeds of ")):
        moved, score = table[name].dropna(), name.removeprefix("deviation over seeds of ")
        if moved.empty:
            continue
        deviation, spread = float((moved**2).mean() ** 0.5), float(grid[score].std())
        rows.append({"score": score, "runs": len(moved), "deviation": deviation, "spread": spread})
        rows[-1]["deviation / spread"] = deviation / spread
    return rows


def effects(table: pandas.DataFrame) -> list[Row]:
    """How much the gaps change along each axis of the full grid: the mean over pairs and their spread."""
    grid = factorial(table)
    grid = grid[grid["converged"]]
    rows = []
    for axis in AXES:
        values = sorted(grid[axis].unique())
        if len(values) < 2:
            continue
        others = [a for a in (*AXES, "seed") if a != axis]
        row: Row = {"axis": axis, "values": [float(v) for v in values]}
        for gap in ("gap in loss", "gap in error"):
            wide = grid.pivot_table(index=others, columns=axis, values=gap)
            change = (wide[values[-1]] - wide[values[0]]).dropna()
            row |= {f"change of the {gap}": float(change.mean()), f"spread of the {gap}": float(change.std())}
            row[f"pairs with a larger {gap}"] = float((change > 0).mean())
        rows.append(row)
    return rows


def report(table: pandas.DataFrame, folder: Path) -> dict[str, Any]:
    """Write ``correlations.json``, ``tables.md`` and the figures into the folder."""
    found: dict[str, Any] = {}
    text = ["<!-- made by generalization_sweep.py -->\n"]
    for task, runs in table.groupby("task", sort=False):
        reached = runs[runs["converged"]]
        measures = measures_of(runs)
        rows = {gap: correlations(runs, measures, gap) for gap in GAPS}
        found[str(task)] = {
            "runs": len(runs),
            "reached the loss": len(reached),
            "seeds": int(runs["seed"].nunique()),
            "training loss": [float(reached["train loss"].min()), float(reached["train loss"].max())],
            "ranges": {gap: [float(reached[gap].min()), float(reached[gap].max())] for gap in GAPS},
            "effects": effects(runs),
            "made of": made_of(reached),
            "repeated": repeated(reached),
            "rows": rows,
        }
        text += section(str(task), found[str(task)], rows)
    (folder / "correlations.json").write_text(json.dumps(rounded(found), indent=1) + "\n", encoding="utf-8")
    (folder / "tables.md").write_text("\n".join(text), encoding="utf-8")
    if "lenet" in found:
        draw_trends(table[(table["task"] == "lenet") & table["converged"]], folder)
    return found


def section(task: str, found: dict[str, Any], rows: dict[str, list[Row]]) -> list[str]:
    """The tables of a task."""
    low, high = found["training loss"]
    return [
        f"## {NAMES[task]}\n",
        f"{found['runs']} runs, {found['seeds']} seeds; {found['reached the loss']} reached the training loss "
        f"({low:.3g} to {high:.3g}).\n",
        markdown(
            ["axis", "values", "gap in loss", "pairs in which it rises", "gap in error", "pairs in which it rises"],
            [
                [row["axis"], ", ".join(f"{v:g}" for v in row["values"])]
                + [
                    text
                    for gap in ("gap in loss", "gap in error")
                    for text in (
                        f"{row[f'change of the {gap}']:+.3f} ± {row[f'spread of the {gap}']:.3f}",
                        f"{row[f'pairs with a larger {gap}']:.0%}",
                    )
                ]
                for row in found["effects"]
            ],
        ),
        ranked(rows),
        markdown(
            [
                "ε",
                "ρ",
                "R² of K/m on log ρ",
                "of kl_excess/m",
                "saturated part of K",
                "the Hessian's share of kl_excess",
            ],
            [
                [
                    row["epsilon"],
                    row["rho"],
                    f"{row['R2 of K/m on log rho']:.3f}",
                    f"{row['R2 of kl_excess/m on log rho']:.3f}",
                    f"{row['saturated part of K']:.1%}",
                    "{:.2%} ({:.2%} to {:.2%})".format(row["the Hessian's share of kl_excess"], *row["its range"]),
                ]
                for row in found["made of"]
            ],
        ),
        markdown(
            ["score", "runs", "moved by another seed", "spread over the grid", "ratio"],
            [
                [row["score"], str(row["runs"])]
                + [f"{row[key]:.3g}" for key in ("deviation", "spread", "deviation / spread")]
                for row in found["repeated"]
            ],
        ),
    ]


def rounded(value: Any) -> Any:
    """Numbers to four digits, so that the file is small and a repetition changes little of it."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def draw_trends(table: pandas.DataFrame, folder: Path, measure: str = "K/m" + NEW) -> None:
    """Gap and metric along the two axes of the article: mean over seeds, and every run as a point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, line in article_axes(table).items():
        axis, other = ("batch_size", "learning_rate")[:: 1 if name == "batch" else -1]
        figure, left = pyplot.subplots(figsize=(6, 4), layout="constrained")
        right = left.twinx()
        for axes, column, color, label in (
            (left, "gap in loss", "C0", "gap (test loss - training loss)"),
            (right, measure, "C1", measure),
        ):
            mean = line.groupby(axis)[column].mean()
            axes.plot(mean.index, mean, color=color, marker="o", label=label)
            axes.plot(line[axis], line[column], color=color, linestyle="", marker=".", alpha=0.4)
            axes.set_ylabel(label, color=color)
            axes.tick_params(axis="y", labelcolor=color)
        left.set_xscale("log", base=2)
        left.set_xticks(sorted(line[axis].unique()), [f"{value:g}" for value in sorted(line[axis].unique())])
        left.set_xlabel(axis.replace("_", " "))
        left.set_title(f"at {other.replace('_', ' ')} {line[other].iloc[0]:g}, one training loss")
        figure.savefig(folder / f"trend_{name}.png", dpi=120)
        pyplot.close(figure)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    report(pandas.read_parquet(where / "runs.parquet"), where)
