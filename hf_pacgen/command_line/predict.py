"""``hf-pacgen predict``: predictions averaged over noise on the weights, and how far they can be trusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets

from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.command_line.printing import open_console, print_notes, titled
from hf_pacgen.command_line.run_options import OutputArguments, Run
from hf_pacgen.config.prediction import AUTO, PredictionConfig
from hf_pacgen.config.settings import Config, option
from hf_pacgen.errors import InputError
from hf_pacgen.predictions.noisy import noisy_predictions
from hf_pacgen.results.noisy_predictions import NoisyPredictions
from hf_pacgen.show.plots import plot_reliability, save_figure
from hf_pacgen.show.tables import number

TABLES = (".csv", ".jsonl", ".parquet")
"""Files that predictions are written to."""


@dataclass(frozen=True, kw_only=True)
class PredictionData(DataArguments):
    """Which data, and which of its columns."""

    default_splits: ClassVar[tuple[str, ...]] = ("test", "validation")
    meant_data: ClassVar[str] = "labeled examples to predict"
    meant_split: ClassVar[str] = "one that the model never saw"

    dataset: list[str] = dataclasses.field(
        default=dataclasses.MISSING,  # type: ignore[assignment]
        metadata={
            "aliases": ["--data"],
            "help": "Labeled examples to predict, as --data or --dataset: an id on the Hugging Face hub; one or more "
            "parquet, csv, tsv, json, jsonl or txt files, compressed or not; or a folder.",
        },
    )
    split: str | None = option(
        None, "Split to predict, by default 'test', else 'validation', or the only one there is."
    )


@dataclass(frozen=True, kw_only=True)
class TrainedOn(Config):
    """What the model was trained on."""

    _argument_group_name = "training"

    training_data: list[str] | None = option(
        None, "What the model was trained on, as --data: --noise-scale auto finds the size of the noise on it."
    )
    training_split: str | None = option(None, "Its split, by default 'train', or the only one there is.")


@dataclass(frozen=True, kw_only=True)
class PredictArguments(OutputArguments):
    """Where the result goes."""

    predictions: str | None = option(
        None, "csv, jsonl or parquet file for the predictions, one a row: class, confidence, entropies, probabilities."
    )
    plot: str | None = option(None, "PNG or SVG file for the reliability diagram, with noise and without.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictions is not None and Path(self.predictions).suffix.lower() not in TABLES:
            raise ValueError(f"predictions must be a file that ends in {', '.join(TABLES)}; got {self.predictions!r}.")


def run(argv: list[str]) -> None:
    """Predict, save and print."""
    call = Run(
        "predict",
        argv,
        PredictArguments,
        PredictionConfig,
        TrainedOn,
        usage="MODEL --data NAME_OR_FILE [options]",
        description="The mean probabilities of a model under draws of noise on its weights, with accuracy, NLL, Brier "
        "score, calibration errors and the area under the risk-coverage curve, beside those of the model as it is.",
        examples="""
        ./my-model --data test.csv --training-data train.csv
        ./my-model --data test.csv --noise-scale 0.2 --draws 16 --output result.json --predictions rows.csv
        ./my-model --data test.parquet --training-data train.parquet --plot reliability.png
        """,
        group="predictions",
        data=PredictionData,
    )
    (about,), name, config = call.extra, call.models[0], call.config
    if config.noise_scale == AUTO and about.training_data is None:
        raise InputError(
            "--noise-scale auto finds the size of the noise on what the model was trained on: give --training-data, or "
            "a number such as --noise-scale 0.2."
        )
    subject = call.load(name)
    training = None
    if config.noise_scale == AUTO:
        columns = {f.name: getattr(call.data_args, f.name) for f in dataclasses.fields(call.data_args)}
        args = DataArguments(**columns | {"dataset": about.training_data, "split": about.training_split})
        training = call.load_other(name, subject, args)
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    with call.measuring() as options:
        result = noisy_predictions(subject.model, subject.examples, training_data=training, **settings, **options)
    result = dataclasses.replace(
        result, status=(*subject.notes, *result.status), origin=call.origin(result, subject, name)
    )
    writers = {
        "output": result.save,
        "predictions": lambda path: write_table(result, path),
        "plot": lambda path: save_figure(plot_reliability(result), path),
    }
    notes = call.in_flags(result.status)
    call.finish(writers, lambda: print_predictions(result, notes, title=f"Predictions of {subject.title}"))


def write_table(result: NoisyPredictions, path: str) -> None:
    """Write the predictions as csv, jsonl or parquet, by the name's ending."""
    table, ending = datasets.Dataset.from_dict(result.table()), Path(path).suffix.lower()
    if ending == ".csv":
        table.to_csv(path)
    elif ending == ".jsonl":
        table.to_json(path)
    elif ending == ".parquet":
        table.to_parquet(path)
    else:
        raise ValueError(f"Predictions are written to files that end in {', '.join(TABLES)}; got {path!r}.")


def print_predictions(result: NoisyPredictions, notes: tuple[str, ...], *, title: str) -> None:
    """Print the numbers with noise and without, how the draws disagree, and what was taken for granted."""
    console, table = open_console(), titled(title)
    table.add_column("Quantity", no_wrap=True)
    for heading in (f"{result.draws} draws", "no noise"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("What it says")
    for row in _rows(result):
        table.add_row(*row)
    console.print(table)
    print_notes(console, notes)


def _rows(result: NoisyPredictions) -> Iterator[tuple[str, str, str, str]]:
    for name, facts in result.facts().items():
        value: Any = getattr(result, name)
        if facts.key and value is not None:
            plain = result.plain[facts.key]
            shown = [f"{100 * v:.2f} %" if facts.is_share else number(v) for v in (value, plain)]
            yield facts.label, shown[0], shown[1], facts.meaning
    what = f"mean over {result.num_predictions:,} {result.unit}s, in nats"
    yield "entropy", number(result.entropy.mean().item()), "", f"of the mean probabilities, {what}"
    yield (
        "mutual information",
        number(result.mutual_information.mean().item()),
        "",
        f"how much the draws disagree, {what}",
    )
    yield "spread", number(result.spread.mean().item()), "", "mean standard deviation of the predicted probability"
    unit = " in units of each row's root mean square" if result.noise.get("shape") == "rows" else ""
    yield "noise", number(result.noise_scale), "", f"half-width of the noise,{unit}"
