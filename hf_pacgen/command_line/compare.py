"""``hf-pacgen compare``: the measures of several checkpoints, side by side."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hf_pacgen.command_line.comparison_file import read_runs, same_run, save_csv, save_json
from hf_pacgen.command_line.comparison_table import natural, print_comparison
from hf_pacgen.command_line.inputs.data import DataArguments, check_files
from hf_pacgen.command_line.inputs.fingerprint import data_fingerprint
from hf_pacgen.command_line.inputs.load import Subject
from hf_pacgen.command_line.run_options import STDOUT, OutputArguments, Run
from hf_pacgen.config import ScoreConfig, SharpnessConfig, SpectrumConfig
from hf_pacgen.config.settings import Count, NonNegative, option
from hf_pacgen.errors import InputError
from hf_pacgen.measures.comparison import CHEAP, MEASURED, measure_all
from hf_pacgen.measures.origin import origin_of
from hf_pacgen.results.measures import Measures

PICTURES = (".png", ".svg")
NOISE_SCALE, DRAWS = 0.01, 64


@dataclass(frozen=True, kw_only=True)
class CompareArguments(OutputArguments):
    """What the runs are compared on, how the command runs, and where the results go."""

    measures: str = option(
        ",".join(CHEAP),
        f"What is measured, of {', '.join(MEASURED)}, with commas; 'all' is all of it. The score always is; spectrum "
        "(λ_max) and sharpness (the expected one) take many times as long.",
    )
    eval_dataset: list[str] | None = option(
        None, "Data that no run was trained on, given as --dataset is: it adds the test loss and the gap."
    )
    eval_split: str | None = option(
        None, "Split of that data; without --eval-dataset, of --dataset. By default as for --split."
    )
    noise_scale: NonNegative | None = option(
        None, f"σ of the normal noise of the expected sharpness; by default {NOISE_SCALE}."
    )
    draws: Count | None = option(None, f"Most draws of that noise for every batch; by default {DRAWS}.")
    iterations: Count | None = option(None, "Most Lanczos steps for λ_max. By default what suits the model.")
    json: str | None = option(None, "The old name of --output.")
    csv: str | None = option(None, "CSV file to write the measures to, one row a run.")
    plot: str | None = option(None, "Picture to draw of the measures by run: a png or svg file.")

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = self.chosen
        if unknown := [name for name in asked if name not in MEASURED]:
            raise ValueError(f"--measures has {unknown[0]!r}: expected 'all', or some of {', '.join(MEASURED)}.")
        settings = {"noise_scale": "sharpness", "draws": "sharpness", "iterations": "spectrum"}
        for name, measure in settings.items():  # it would be ignored in silence
            if getattr(self, name) is not None and measure not in asked:
                flag, others = f"--{name.replace('_', '-')}", ",".join((*asked, measure))
                raise ValueError(f"{flag} is of {measure}, which is not measured. Add --measures {others}.")
        if self.plot is not None and Path(self.plot).suffix.lower() not in PICTURES:
            raise ValueError(f"--plot {self.plot!r}: expected a file that ends in {', '.join(PICTURES)}. Rename it.")

    @property
    def chosen(self) -> tuple[str, ...]:
        """What is measured, the score first."""
        given = [name.strip() for name in self.measures.split(",") if name.strip()]
        return MEASURED if given == ["all"] else tuple(dict.fromkeys(("score", *given)))


def run(argv: list[str]) -> None:
    """Measure every run, save after each, and print the table."""
    call = Run(
        "compare",
        argv,
        CompareArguments,
        ScoreConfig,
        usage="RUN1 [RUN2 ...] --dataset NAME_OR_FILE [options]",
        description="Several checkpoints on the same training data, side by side: all those of one run, or the last of "
        "each of several runs, models and adapters. With --eval-dataset also the test loss and the gap. With --output "
        "a run that is in the file already is not measured again.",
        examples="""
        ./run --dataset train.parquet --output measures.json
        ./run1 ./run2 --dataset train.parquet --eval-dataset test.parquet --csv measures.csv --plot measures.png
        ./run/checkpoint-* --dataset train.parquet --measures score,relative,spectrum
        """,
        several=True,
    )
    twice = [name for name in call.models if call.models.count(name) > 1]
    if twice:  # a rank correlation would count it as two runs
        raise InputError(f"The run {twice[0]!r} is given twice: expected different ones. Leave one out.")
    args, test = call.args, None
    if "plot" in call.outputs and importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib, which is not installed: pip install hf_pacgen[plots].")
    if args.eval_dataset is not None or args.eval_split is not None:
        dataset = args.eval_dataset or call.data_args.dataset
        test = dataclasses.replace(call.data_args, dataset=dataset, split=args.eval_split)
        check_files(test)  # before the first run is measured
    check_files(call.data_args)
    output = call.outputs.get("output")
    known = read_runs(None if output == STDOUT else output)
    named = sorted(zip(short_names(call.models), call.models, strict=True), key=lambda pair: natural(pair[0]))
    rows: list[Measures] = []
    reused = 0
    for name, model in named:
        row, is_known = _measured(call, model, name, test, known)
        rows.append(row)
        reused += is_known
        # what was measured survives a kill; runs of before that are still to come stay in the file
        if output not in (None, STDOUT) and call.is_main and not is_known:
            call.keep(partial(save_json, [*rows, *_left_out(known, rows)]), str(output))
    lost = [old.name for old in _left_out(known, rows)]
    shown = [dataclasses.replace(row, status=call.in_flags(row.status)) for row in rows]
    files = {"output": partial(save_json, rows), "csv": partial(save_csv, rows), "plot": partial(_plot, rows)}
    call.finish(files, lambda: print_comparison(shown, reused=reused, left_out=lost))


def _left_out(known: Sequence[Measures], rows: Sequence[Measures]) -> list[Measures]:
    """Runs of a file that are not among these: the file has what was asked for, and no others."""
    there = {row.origin["model"]["weights"] for row in rows}
    return [old for old in known if not old.origin or old.origin["model"]["weights"] not in there]


def _measured(
    call: Run, model: str, name: str, test: DataArguments | None, known: Sequence[Measures]
) -> tuple[Measures, bool]:
    """The measures of a run, and whether they were known."""
    args, config = call.args, call.config
    subject = call.load(model)
    test_data = None if test is None else call.load_other(model, subject, test)
    origin = _origin(call, subject, model, test_data)
    if (before := same_run(known, origin)) is not None:
        return dataclasses.replace(before, name=name), True
    subset = {"max_examples": config.max_examples, "seed": config.seed}  # all measures see the same examples
    with call.measuring() as options:
        found = measure_all(
            subject.model,
            subject.examples,
            name=name,
            test_data=test_data,
            measures=args.chosen,
            noise_scale=NOISE_SCALE if args.noise_scale is None else args.noise_scale,
            score=config,
            spectrum=SpectrumConfig(probes=0, iterations=args.iterations, hvp=config.hvp, **subset),
            sharpness=SharpnessConfig(draws=args.draws or DRAWS, **subset),
            **options,
        )
    return dataclasses.replace(found, status=(*subject.notes, *found.status), origin=origin), False


def _origin(call: Run, subject: Subject, model: str, test_data: Any) -> dict[str, Any]:
    """Where the measures of a run come from, with all that they depend on."""
    args, data, loading = call.args, call.data_args.to_dict(), call.model_args
    settings = {
        "measures": list(args.chosen),
        "score": call.config.to_dict(),
        **{name: getattr(args, name) for name in ("batch_size", "noise_scale", "draws", "iterations")},
        "task": None if loading.task is None else loading.task.value,
        "dtype": loading.dtype,
        **{name: getattr(loading, name, False) for name in ("load_in_4bit", "random_head")},
        # the rows themselves count by their fingerprint
        "data": {key: value for key, value in data.items() if key not in ("dataset", "dataset_config", "split")},
    }
    known = SimpleNamespace(origin=origin_of(subject.model, subject.examples))
    found = call.origin(known, subject, model) | {"settings": settings}
    return found if test_data is None else found | {"test": data_fingerprint(test_data)}


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


def _plot(rows: Sequence[Measures], path: str) -> None:
    from hf_pacgen.show.plots import plot_runs, save_figure  # matplotlib takes a second to import

    save_figure(plot_runs(rows), path)
