"""Kendall's τ of a measure with a gap, along each axis of a grid, with bootstrap intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pandas
from scipy.stats import kendalltau

AXES = ("batch_size", "learning_rate", "weight_decay", "width", "dropout")
DRAWS = 2000
"""Bootstrap samples."""

Row = dict[str, Any]


def tau(measure: Any, gap: Any) -> float:
    """Kendall's τ-b, NaN where one of the two does not vary."""
    return float(kendalltau(measure, gap).statistic) if len(measure) > 1 else math.nan


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


Taus = dict[int, list[float]]
"""τ's by seed."""


def along(table: pandas.DataFrame, measure: str, gap: str, axis: str) -> Taus:
    """For each seed, τ along an axis for every setting of the other axes (Jiang et al. 2019, arXiv 1912.02178)."""
    others = [a for a in AXES if a != axis]
    found: Taus = {}
    for seed, runs in table.groupby("seed"):
        values = [tau(group[measure], group[gap]) for _, group in runs.groupby(others) if len(group) > 1]
        if known := [value for value in values if not math.isnan(value)]:
            found[int(seed)] = known
    return found


def mean(taus: Taus) -> float:
    """Over the settings of each seed, then over seeds."""
    return float(numpy.mean([numpy.mean(values) for values in taus.values()]))


def interval(*axes: Taus) -> tuple[float, float]:
    """A 95 % bootstrap interval of the mean over axes: seeds are drawn, and in each of them its settings.

    Drawing seeds alone would give a point where the two or three that are there happen to agree.
    """
    generator = numpy.random.default_rng(0)
    seeds = sorted(set.intersection(*(set(taus) for taus in axes)) or set.union(*(set(taus) for taus in axes)))
    drawn = numpy.zeros((len(axes), DRAWS))
    for chosen in generator.integers(0, len(seeds), (len(seeds), DRAWS)):
        for row, taus in zip(drawn, axes, strict=True):
            for number, seed in enumerate(seeds):
                values = numpy.array(taus.get(seed, [math.nan]))
                here = numpy.flatnonzero(chosen == number)
                row[here] += values[generator.integers(0, len(values), (len(here), len(values)))].mean(axis=1)
    low, high = numpy.nanquantile((drawn / len(seeds)).mean(axis=0), [0.025, 0.975])
    return float(low), float(high)


def article_axes(table: pandas.DataFrame) -> dict[str, pandas.DataFrame]:
    """The runs along batch size and along learning rate at the commonest value of everything else."""
    base = table[(table["weight_decay"] == 0) & (table["dropout"] == 0) & (table["width"] == table["width"].min())]
    found = {}
    for name, axis, other in (("batch", "batch_size", "learning_rate"), ("rate", "learning_rate", "batch_size")):
        counts = base.groupby(other)[axis].nunique()
        line = base[base[other] == counts[counts == counts.max()].index.max()]
        if line[axis].nunique() > 2:
            found[name] = line
    return found


def correlations(table: pandas.DataFrame, measures: list[str], gap: str) -> list[Row]:
    """A row for each measure, over the runs that reached the training loss."""
    grid = factorial(table)  # of the runs that were tried, or one that failed would take half of the others with it
    grid, table = grid[grid["converged"]], table[table["converged"]]
    lines = article_axes(table)
    rows = []
    for measure in measures:
        known = grid[grid[measure].notna()]
        if known.empty:
            continue
        row: Row = {"measure": measure, "runs": len(known), "whole grid": tau(known[measure], known[gap])}
        parts = {axis: found for axis in AXES if (found := along(known, measure, gap, axis))}
        for axis, taus in parts.items():
            row[axis], row[f"{axis} interval"] = mean(taus), interval(taus)
        if parts:
            row["granulated"] = float(numpy.mean([row[axis] for axis in parts]))
            row["granulated interval"] = interval(*parts.values())
        for name, line in lines.items():
            found = {int(s): [tau(runs[measure], runs[gap])] for s, runs in line.groupby("seed")}
            if found := {seed: values for seed, values in found.items() if not math.isnan(values[0])}:
                row[f"{name} axis"], row[f"{name} axis interval"] = mean(found), interval(found)
        rows.append(row)
    return rows


def explained(target: Any, *by: Any) -> float:
    """R² of a least-squares fit of the target on some variables and a constant."""
    target = numpy.asarray(target, dtype=float)
    if len(target) <= len(by) + 1:
        return math.nan
    matrix = numpy.column_stack([numpy.ones(len(target)), *(numpy.asarray(b, dtype=float) for b in by)])
    rest = target - matrix @ numpy.linalg.lstsq(matrix, target, rcond=None)[0]
    spread = ((target - target.mean()) ** 2).sum()
    return float(1 - (rest**2).sum() / spread) if spread > 0 else math.nan
