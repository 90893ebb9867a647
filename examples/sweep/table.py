"""All runs of the sweep as one table: settings, losses, measures, and every form of K(η)."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pandas
from sweep.forms import Pieces, deviations, forms
from sweep.grids import RunSettings

SETTINGS = ("task", "batch_size", "learning_rate", "weight_decay", "width", "dropout", "seed")


def run_of(settings: RunSettings, folder: Path) -> dict[str, Any] | None:
    """One row, of what is there; None where the run has not been trained."""
    path = folder / settings.name
    if not (path / "training.json").is_file():
        return None
    row: dict[str, Any] = json.loads((path / "training.json").read_text(encoding="utf-8"))
    if not (path / "measures.json").is_file():
        return row
    measures = json.loads((path / "measures.json").read_text(encoding="utf-8"))
    ratios = {name.removeprefix("rho "): m["ratios"] for name, m in measures.items() if name.startswith("rho ")}
    row["measuring seconds"] = sum(m["seconds"] for m in measures.values())
    for name, found in measures.items():
        if not name.startswith("rho ") and name != "repeats":
            row |= {key: value for key, value in found.items() if key != "seconds"}
    if (path / "pieces.safetensors").is_file():
        repeated = {box: rows for box, rows in measures.get("repeats", {}).items() if box != "seconds"}
        row |= _kept(path, ratios, repeated, settings.examples)
    return row


def _kept(
    path: Path, ratios: dict[str, list[float]], repeated: dict[str, list[list[float]]], examples: int
) -> dict[str, float]:
    """The forms of K(η), made again where a ratio or ``forms.py`` has changed."""
    written = path / "forms.json"
    key = [Path(__file__).with_name("forms.py").read_text(encoding="utf-8"), ratios, repeated]
    if written.is_file():
        kept = json.loads(written.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return kept["forms"]  # type: ignore[no-any-return]
    pieces = Pieces.read(path / "pieces.safetensors")
    found = forms(pieces, ratios, examples) | deviations(pieces, repeated, examples)
    written.write_text(json.dumps({"key": key, "forms": found}), encoding="utf-8")
    return found


def table_of(runs: list[RunSettings], folder: Path) -> pandas.DataFrame:
    """A row for every run that has been trained, in the order of the settings."""
    rows = [row for run in runs if (row := run_of(run, folder)) is not None]
    return pandas.DataFrame(rows).sort_values(list(SETTINGS), ignore_index=True)


def stages(run: RunSettings, folder: str, names: list[str] | None) -> str:
    """Train where that is missing, and take the missing measures of a run that reached the loss."""
    import torch
    import transformers
    from sweep.measuring import measured
    from sweep.training import trained

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # of the new head, for every model
    if trained(run, Path(folder))["converged"] and names is not None:
        # scores are repeated with other seeds on some runs only
        some = run.seed == 0 and run.width in (0, 4, 32)
        measured(run, Path(folder), [name for name in names if some or name != "repeats"])
    return run.name


def perform(runs: list[RunSettings], folder: Path, workers: int, names: list[str] | None) -> Any:
    """All runs, one after another or by some processes; yields names as they are done."""
    if workers <= 1:
        for run in runs:
            yield stages(run, str(folder), names)
        return
    import multiprocessing

    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(stages, run, str(folder), names) for run in runs]):
            yield future.result()
