"""The files of a comparison, and what is in them already."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_pacgen.errors import InputError
from hf_pacgen.files import write_atomically
from hf_pacgen.maths.rank_correlation import rank_correlation, rank_interval
from hf_pacgen.measures.ranking import orders, ranked
from hf_pacgen.results.base import read_json
from hf_pacgen.results.measures import MEASURES, Measures

NUM_RANKED = 3  # fewest runs whose ranks say anything
NEITHER = ("gap", "test_loss", "loss")  # no predictions, or the same in all runs that are ranked


def correlations(rows: Sequence[Measures]) -> dict[str, float]:
    """Rank correlation of every measure with the gap, over the runs of equal training loss, if they are enough."""
    rows = [rows[i] for i in ranked([row.loss for row in rows])]
    gaps = [row.gap for row in rows if row.gap is not None]
    if len(rows) < NUM_RANKED or len(gaps) < len(rows):
        return {}
    values = {field: [getattr(row, field) for row in rows] for field in MEASURES if field not in NEITHER}
    found = {field: rank_correlation(known, gaps) for field, known in values.items() if None not in known}
    return {field: value for field, value in found.items() if not math.isnan(value)}  # NaN: the same in all runs


def save_json(rows: Sequence[Measures], path: str) -> None:
    """All measures of all runs, their order, and rank correlations with how far they can be trusted."""
    # lowest first; "tied" says whether each is distinguishable from the next, None where that cannot be judged
    order = {field: {"names": made.names, "tied": made.tied} for field, made in orders(rows).items()}
    chosen, found = ranked([row.loss for row in rows]), correlations(rows)
    whole = {
        "runs": [row.to_dict() for row in rows],
        "ranked": [rows[i].name for i in chosen],
        "order": order,
        "rank_correlation_with_gap": found,
        "rank_correlation_interval": {field: rank_interval(value, len(chosen)) for field, value in found.items()},
        "rank_correlation_runs": len(chosen) if found else 0,
    }
    text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def save_csv(rows: Sequence[Measures], path: str) -> None:
    """The same, one row a run."""
    values: list[dict[str, Any]] = [row.to_dict() | {"status": " ".join(row.status)} for row in rows]
    columns = [name for name in values[0] if name not in ("version", "origin")]  # of the JSON
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(values)


def read_runs(path: str | None) -> list[Measures]:
    """The runs that a file has from before; none where there is no such file.

    Raises:
        InputError: it is no comparison, and would be lost.
    """
    if path is None or not Path(path).exists():
        return []
    remedy = f"--output {path!r} exists, and is no comparison: it would be overwritten. Choose another name."
    try:
        whole = read_json(path)
        if not isinstance(whole, Mapping) or not isinstance(whole.get("runs"), list):
            raise InputError("there are no runs in it")
        return [Measures.from_dict(row) for row in whole["runs"]]
    except InputError as error:
        raise InputError(f"{remedy} ({str(error).rstrip('.')}.)") from None


def same_run(known: Sequence[Measures], origin: Mapping[str, Any]) -> Measures | None:
    """A run of the same weights, data, settings and release that has what is asked for; None if it is to be measured.

    Args:
        known: from a file.
        origin: what the result of the run would have.
    """
    wanted = _identity(origin)
    if None in wanted:  # of a stream, or of weights that cannot be read
        return None
    for row in known:
        same = bool(row.origin) and _identity(row.origin) == wanted
        if same and set(origin["settings"]["measures"]) <= set(row.origin["settings"]["measures"]):
            return row
    return None


def _identity(origin: Mapping[str, Any]) -> tuple[Any, ...]:
    settings = {key: value for key, value in origin.get("settings", {}).items() if key != "measures"}
    return (
        origin.get("model", {}).get("weights"),
        origin.get("data", {}).get("fingerprint"),
        origin.get("test", ""),  # without test data
        origin.get("versions", {}).get("hf_pacgen"),
        json.dumps(settings, sort_keys=True),
    )
