"""``hf-pacgen promise``: what error may be promised of a model, from examples that it never saw."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.command_line.inputs.load import Subject
from hf_pacgen.command_line.promise_how import HowArguments, given_flags, trained_promise
from hf_pacgen.command_line.promise_table import print_promise
from hf_pacgen.command_line.run_options import OutputArguments, Run
from hf_pacgen.config.promise import PromiseConfig
from hf_pacgen.config.settings import Config, option
from hf_pacgen.errors import refusing
from hf_pacgen.promises.promise import promise
from hf_pacgen.promises.selection import STATE
from hf_pacgen.promises.selective import save_selective
from hf_pacgen.results.promise import Promise
from hf_pacgen.show.plots import plot_coverage_risk, save_figure


@dataclass(frozen=True, kw_only=True)
class HeldOutArguments(DataArguments):
    """Which data, and which of its columns."""

    default_splits: ClassVar[tuple[str, ...]] = ("test", "validation")
    meant_data: ClassVar[str] = "labeled examples that the model never saw"
    meant_split: ClassVar[str] = "one that the model never saw"

    dataset: list[str] = dataclasses.field(
        default=dataclasses.MISSING,  # type: ignore[assignment]
        metadata={
            "aliases": ["--held-out"],
            "help": "Labeled examples that the model never saw, as --held-out or --dataset: an id on the Hugging Face "
            "hub; one or more parquet, csv, tsv, json, jsonl or txt files, compressed or not; or a folder.",
        },
    )
    split: str | None = option(
        None, "Split of the held-out data, by default 'test', else 'validation', or the only one there is."
    )


@dataclass(frozen=True, kw_only=True)
class TrainingArguments(Config):
    """What the model was trained on."""

    _argument_group_name = "training"

    training_data: list[str] | None = option(
        None,
        "What the model was trained on, as the held-out data: examples that stand in both are refused, and the "
        "thresholds of --max-error come from it.",
    )
    training_split: str | None = option(None, "Its split, by default 'train', or the only one there is.")
    trainer_state: str | None = option(
        None, f"The training run's folder, or its {STATE}. By default what lies in the model's folder."
    )


@dataclass(frozen=True, kw_only=True)
class PromiseArguments(OutputArguments):
    """Where the result goes."""

    plot: str | None = option(None, "PNG or SVG file for the errors among the answers, with --max-error.")


def run(argv: list[str]) -> None:
    """Promise, save and print."""
    call = Run(
        "promise",
        argv,
        PromiseArguments,
        PromiseConfig,
        TrainingArguments,
        HowArguments,
        usage="MODEL [MODEL ...] --held-out NAME_OR_FILE [options]",
        description="The smallest error that may be promised of a model on new examples, from labeled examples that it "
        "never saw. Of several models the best one is promised, and each costs a part of delta.",
        examples="""
        ./my-model --held-out test.csv --training-data train.csv
        ./my-model --held-out test.csv --max-error 0.05 --plot curve.png
        ./run/checkpoint-100 ./run/checkpoint-200 --held-out test.parquet --output promise.json
        ./base --held-out labeled.csv --how progressive --train script.py:make_trainer --save-models out
        """,
        group="promise",
        several=True,
        expand=False,
        data=HeldOutArguments,
    )
    about, how = call.extra
    config = call.config
    if how.how is not None:
        if about.training_data is not None or about.trainer_state is not None or "plot" in call.outputs:
            call.parser.error("--how trains the model itself: leave out --training-data, --trainer-state and --plot")
        trained_promise(call, how)
        return
    if given := given_flags(how):
        call.parser.error(f"--{given[0].replace('_', '-')} goes with --how")
    if call.outputs.get("plot") is not None and config.max_error is None:
        call.parser.error("--plot draws the errors among the answers: it needs --max-error")
    if len(call.models) > 1 and config.candidates > 1:
        call.parser.error("--candidates is the number of models where one is given: leave it out")
    subjects = {name: call.load(name) for name in call.models}
    first = call.models[0]
    subject = subjects[first]
    training = _training_data(call, about, first, subject)
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    if len(subjects) > 1:
        settings["candidates"] = {name: one.model for name, one in subjects.items() if name != first}
    with call.measuring() as options:
        result = promise(
            subject.model,
            subject.examples,
            training_data=training,
            trainer_state=about.trainer_state or (first if Path(first).is_dir() else None),
            **settings,
            **options,
        )
    chosen = next((name for name in call.models if repr(name) in result.subject), first)
    result = dataclasses.replace(
        result,
        subject="the model" if len(subjects) == 1 else f"the best of {len(subjects)} models,",
        notes=(*subjects[chosen].notes, *result.notes),
        origin=call.origin(result, subjects[chosen], chosen),
    )
    shown = dataclasses.replace(result, notes=call.in_flags(result.notes))
    writers = {"output": result.save, "plot": lambda path: save_figure(plot_coverage_risk(result), path)}
    call.finish(writers, lambda: print_promise(shown, title=f"Promise of {subjects[chosen].title}"))
    beside = _beside(call, result, chosen)
    if beside is not None and not call.quiet:
        with call.apart():
            print(f"Written to {beside}")


def _training_data(call: Run, about: TrainingArguments, model: str, subject: Subject) -> Any:
    """The examples that the model was trained on, made as the held-out ones are."""
    if about.training_data is None:
        return None
    columns = {f.name: getattr(call.data_args, f.name) for f in dataclasses.fields(call.data_args)}
    args = DataArguments(**columns | {"dataset": about.training_data, "split": about.training_split})
    return call.load_other(model, subject, args)


def _beside(call: Run, result: Promise, model: str) -> Path | None:
    """Where the threshold was written, for whoever loads the model; None where there is none, or no folder."""
    if result.rule is None or result.threshold is None or not Path(model).is_dir() or not call.is_main:
        return None
    with refusing(f"The threshold cannot be written beside the model {model!r}", "Copy the model first.", kind=OSError):
        return save_selective(result, model)
