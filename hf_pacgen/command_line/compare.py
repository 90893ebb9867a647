"""``hf-pacgen compare``: all measures of several checkpoints, side by side."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from hf_pacgen.command_line.inputs.data import DataArguments, check_files
from hf_pacgen.command_line.printing import open_console, print_notes, titled
from hf_pacgen.command_line.run_options import BatchArguments, Run
from hf_pacgen.config import ScoreConfig, SharpnessConfig, SpectrumConfig
from hf_pacgen.config.settings import Count, NonNegative, option
from hf_pacgen.errors import InputError
from hf_pacgen.maths.rank_correlation import rank_correlation
from hf_pacgen.measures.comparison import measure_all
from hf_pacgen.measures.ranking import orders, ranked, stderr_of, unranked
from hf_pacgen.results.measures import MEASURES, Measures
from hf_pacgen.show.tables import number, percent, spread

NUM_RANKED = 3  # fewest runs whose ranks say anything


@dataclass(frozen=True, kw_only=True)
class CompareArguments(BatchArguments):
    """What the runs are compared on, how the command runs, and where the results go."""

    eval_dataset: list[str] | None = option(
        None, "Data that no run was trained on, given as --dataset is: it adds the test loss and the gap."
    )
    eval_split: str | None = option(
        None, "Split of that data; without --eval-dataset, of --dataset. By default as for --split."
    )
    noise_scale: NonNegative = option(0.01, "σ of the normal noise of the expected sharpness.")
    draws: Count = option(64, "Most draws of that noise for every batch.")
    iterations: Count | None = option(None, "Most Lanczos steps for λ_max. By default what suits the model.")
    json: str | None = option(None, "JSON file to write all measures to; its folder must exist.")
    csv: str | None = option(None, "CSV file to write them to, one row a run.")


def run(argv: list[str]) -> None:
    """Measure every run, save, and print the table."""
    call = Run(
        "compare",
        argv,
        CompareArguments,
        ScoreConfig,
        usage="RUN1 RUN2 ... --dataset NAME_OR_FILE [options]",
        description="All measures of several checkpoints on the same training data, side by side: PACGen, curvature, "
        "sharpness, norm and loss; with --eval-dataset also the test loss, the gap, and how each measure ranks it.",
        example="run/checkpoint-* --dataset train.parquet --eval-dataset test.parquet --csv measures.csv",
        several=True,
    )
    twice = [name for name in call.models if call.models.count(name) > 1]
    if twice:  # a rank correlation would count it as two runs
        raise InputError(f"The run {twice[0]!r} is given twice: expected different ones. Leave one out.")
    args, test = call.args, None
    if args.eval_dataset is not None or args.eval_split is not None:
        dataset = args.eval_dataset or call.data_args.dataset
        test = dataclasses.replace(call.data_args, dataset=dataset, split=args.eval_split)
        check_files(test)  # before the first run is measured
    check_files(call.data_args)
    names = short_names(call.models)
    rows = [_measured(call, model, name, test) for model, name in zip(call.models, names, strict=True)]
    shown = [dataclasses.replace(row, status=call.in_flags(row.status)) for row in rows]
    call.finish({"json": partial(_save_json, rows), "csv": partial(_save_csv, rows)}, lambda: print_comparison(shown))


def _measured(call: Run, model: str, name: str, test: DataArguments | None) -> Measures:
    args, config = call.args, call.config
    subject = call.load(model)
    test_data = None if test is None else call.load(model, test).examples
    subset = {"max_examples": config.max_examples, "seed": config.seed}  # all measures see the same examples
    with call.measuring() as options:
        found = measure_all(
            subject.model,
            subject.examples,
            name=name,
            test_data=test_data,
            noise_scale=args.noise_scale,
            score=config,
            spectrum=SpectrumConfig(probes=0, iterations=args.iterations, hvp=config.hvp, **subset),
            sharpness=SharpnessConfig(draws=args.draws, **subset),
            **options,
        )
    return dataclasses.replace(found, status=(*subject.notes, *found.status))


def short_names(runs: Sequence[str]) -> list[str]:
    """The last parts of paths: as few as tell them apart.

    >>> short_names(["out/a/checkpoint-5", "out/b/checkpoint-5"])
    ['a/checkpoint-5', 'b/checkpoint-5']
    """
    parts = [Path(run).parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(runs)  # a run given twice was refused before


def correlations(rows: Sequence[Measures]) -> dict[str, float]:
    """Rank correlation of every measure with the gap, over the runs of equal training loss, if they are enough."""
    rows = [rows[i] for i in ranked([row.loss for row in rows])]
    gaps = [row.gap for row in rows if row.gap is not None]
    if len(rows) < NUM_RANKED or len(gaps) < len(rows):
        return {}
    fields = [field for field in MEASURES if field not in ("gap", "test_loss")]  # which are no predictions
    values = {field: [getattr(row, field) for row in rows] for field in fields}
    found = {field: rank_correlation(known, gaps) for field, known in values.items() if None not in known}
    return {field: value for field, value in found.items() if not math.isnan(value)}  # NaN: the same in all runs


def _save_json(rows: Sequence[Measures], path: str) -> None:
    # lowest first; "tied" says whether each is distinguishable from the next, None where that cannot be judged
    order = {field: {"names": made.names, "tied": made.tied} for field, made in orders(rows).items()}
    chosen = ranked([row.loss for row in rows])
    whole = {
        "runs": [row.to_dict() for row in rows],
        "ranked": [rows[i].name for i in chosen],
        "order": order,
        "rank_correlation_with_gap": correlations(rows),
    }
    Path(path).write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _save_csv(rows: Sequence[Measures], path: str) -> None:
    values: list[dict[str, Any]] = [row.to_dict() | {"status": " ".join(row.status)} for row in rows]
    columns = [name for name in values[0] if name != "version"]  # of the JSON; a table has none
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(values)


def print_comparison(rows: Sequence[Measures]) -> None:
    """Print a column for every run, and what limits the numbers."""
    ranks = correlations(rows)
    examples = " / ".join(f"{n:,}" for n in sorted({row.num_examples for row in rows}))
    title = f"Measures of {len(rows)} runs on {examples} training examples (η = {number(rows[0].eta)})"
    table = titled(title)
    table.add_column("Measure", no_wrap=True)  # a folded label would look like two measures
    for row in rows:
        table.add_column(escape(row.name), justify="right", overflow="fold")
    if ranks:
        table.add_column("rank corr. with gap", justify="right")
    for field, label in MEASURES.items():
        if any(getattr(row, field) is not None for row in rows):  # the gap needs test data
            cells = [_cell(row, field) for row in rows]
            table.add_row(label, *cells, *([f"{ranks[field]:+.2f}" if field in ranks else ""] if ranks else []))
    console = open_console(widest=table)  # in a file there is room for all runs
    console.print(table)
    _print_order(console, rows)
    if len({row.num_parameters for row in rows}) > 1:  # a sum over more weights is larger by itself
        console.print("The runs differ in their number of parameters: compare Ψ/m and K(η)/m.", highlight=False)
    said: dict[str, list[str]] = {}  # a sentence on several runs is printed once
    for row in rows:
        for sentence in row.status:
            said.setdefault(sentence, []).append(row.name)
    of_all = len(rows) if len(rows) > 1 else 0
    print_notes(console, (s if len(names) == of_all else f"{', '.join(names)}: {s}" for s, names in said.items()))


def _print_order(console: Console, rows: Sequence[Measures]) -> None:
    found = orders(rows)
    if found:
        table = titled("Runs of equal training loss by each measure, lowest first")
        table.add_column("Measure", no_wrap=True)
        table.add_column("Order", overflow="fold")
        for field, made in found.items():
            table.add_row(Measures.facts()[field].label, escape(str(made)))
        console.print(table)
        judged = [made for made in found.values() if made.is_judged]
        if any(True in made.tied for made in found.values()):
            console.print("≈: not distinguishable, since the 95 % intervals overlap.", highlight=False)
        if len(judged) < len(found):
            console.print("?: a standard error is unknown, so ties cannot be judged.", highlight=False)
    if (sentence := unranked(rows)) is not None:
        print_notes(console, [sentence])


def _cell(row: Measures, field: str) -> str:
    value = getattr(row, field)
    if value is None:  # in a file of an older release, say
        return ""
    if field.endswith("fraction"):
        return percent(value)
    # Lanczos finds it from below
    if field == "largest_eigenvalue" and not row.largest_eigenvalue_converged:
        return f"≥ {number(value)}"
    return number(value) + spread(stderr_of(row, field))
