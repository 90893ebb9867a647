"""``hf-pacgen promise --how``: train on a part of labeled data, and promise from the rest."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.command_line.inputs.load import Subject
from hf_pacgen.command_line.printing import open_console
from hf_pacgen.command_line.promise_table import print_promise
from hf_pacgen.command_line.run_options import Run
from hf_pacgen.config.settings import Config, Count, option
from hf_pacgen.errors import InputError
from hf_pacgen.promises.expected import BLOCKS, GUESS, ExpectedPromise, expected_promises
from hf_pacgen.promises.how import How, TrainedPromise, train_and_promise
from hf_pacgen.results.certificate import rounded_up
from hf_pacgen.results.promise import Promise

__all__ = ["HowArguments", "trained_promise"]

OF_TRAINED_MODELS = ("max_error", "coverage", "loss", "max_examples")
"""Settings of a promise that go with a model that is trained already."""
OF_WAYS = {
    "train_fraction": (How.SPLIT, How.ALL),
    "blocks": (How.PROGRESSIVE,),
    "cold_start": (How.PROGRESSIVE,),
    "unlabeled": (How.ALL,),
}
"""Flags that only some ways heed."""


@dataclass(frozen=True, kw_only=True)
class HowArguments(Config):
    """Train first, on a part of the data of --held-out."""

    _argument_group_name = "training first"

    how: str | None = option(
        None,
        "Divide the data of --held-out, train on some and promise from the others: 'split', 'progressive' (one of "
        "several models, each tested before it learns from what tested it) or 'all' (needs --unlabeled).",
    )
    train: str | None = option(
        None,
        "FILE.py:FUNCTION with function(model, dataset), which trains in place, or returns a Trainer. It gets the "
        "examples as the model takes them.",
    )
    save_models: str | None = option(None, "Folder for the trained models, about which the promise is.")
    train_fraction: float | None = option(
        None, "Share that trains; by default a half up to 3,000 examples and four fifths from 10,000 on."
    )
    blocks: Count = option(BLOCKS, "Blocks of 'progressive'.")
    cold_start: bool = option(False, "Begin each training of 'progressive' anew, on all examples so far.")
    expected_error: float | None = option(
        None, "The error you expect, near which 'progressive' promises best; by default a first model shows it."
    )
    unlabeled: list[str] | None = option(None, "Inputs without labels, for 'all': files as for --held-out.")


def trained_promise(call: Run, given: HowArguments) -> None:
    """Show what each way would promise, train, promise, and save both the promise and the models."""
    config: Any = call.config
    with call.parser.refusals():
        way = How(given.how or "")
    if given.train is None or given.save_models is None:
        missing = "--train FILE.py:FUNCTION" if given.train is None else "--save-models FOLDER"
        raise InputError(
            f"--how {way.value} needs {missing}: the data train models first, and the promise is about these."
        )
    unused = [name for name in OF_TRAINED_MODELS if getattr(config, name) is not None]
    if unused or config.candidates > 1 or len(call.models) > 1:
        flag = _flag(unused[0]) if unused else "several candidates"
        raise InputError(f"--how promises the error of what it trains: leave out {flag}, or train before you promise.")
    if unheeded := [name for name in given_flags(given) if way not in OF_WAYS.get(name, (way,))]:
        ways = " or ".join(known.value for known in OF_WAYS[unheeded[0]])
        raise InputError(
            f"{_flag(unheeded[0])} goes with --how {ways}, and --how {way.value} does not heed it: leave it out."
        )
    if way == How.ALL and given.unlabeled is None:
        raise InputError("--how all needs --unlabeled: files of inputs without labels, drawn like the data.")
    folder = Path(given.save_models)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--save-models {str(folder)!r} exists already: give the name of a new folder.")
    train = function_of(given.train)
    subject = call.load(call.models[0])
    if not hasattr(subject.examples, "__len__"):
        raise InputError("--how divides the data, and a stream cannot be divided: download it, or take a part of it.")
    options: dict[str, Any] = {"train_fraction": given.train_fraction, "blocks": given.blocks}
    guess = given.expected_error
    expected = {"delta": config.delta, "expected_error": GUESS if guess is None else guess, **options}
    with call.parser.refusals():
        rows = expected_promises(len(subject.examples), **expected)
    if call.is_main and not call.quiet:
        with call.apart():
            print_expected(rows, len(subject.examples), expected["expected_error"])
    others = _unlabeled(call, given, subject) if given.unlabeled else None
    with call.measuring() as run:
        found = train_and_promise(
            subject.model,
            subject.examples,
            train,
            how=way.value,
            delta=config.delta,
            warm_start=not given.cold_start,
            expected_error=guess,
            unlabeled=others,
            assume_independent=config.assume_independent,
            seed=config.seed,
            **options,
            **run,
        )
    result = dataclasses.replace(
        found.promise,
        notes=(*subject.notes, *found.promise.notes),
        origin=call.origin(found.promise, subject, call.models[0]),
    )
    if call.is_main:
        places = _save(found, folder, subject.processor)
        print_after(call, result, found, places)


def given_flags(given: HowArguments) -> list[str]:
    """The settings that were given, of those that are not --how itself."""
    fields = [field for field in dataclasses.fields(given) if field.name != "how"]
    return [field.name for field in fields if getattr(given, field.name) != field.default]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def function_of(name: str) -> Callable[..., Any]:
    """The function of ``FILE.py:FUNCTION``."""
    file, colon, function = name.rpartition(":")
    if not colon or not function.isidentifier():
        raise InputError(f"--train {name!r}: expected FILE.py:FUNCTION, a file and the name of a function in it.")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"--train {name!r}: there is no file {file!r}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"--train {name!r}: {file!r} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # for what it defines to be pickled
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"--train {name!r}: {file!r} has no function {function!r}.")
    return found  # type: ignore[no-any-return]


def _unlabeled(call: Run, given: HowArguments, subject: Subject) -> Any:
    columns = {f.name: getattr(call.data_args, f.name) for f in dataclasses.fields(call.data_args)}
    others = DataArguments(**columns | {"dataset": given.unlabeled, "split": None})
    return call.load_other(call.models[0], subject, others)


def _save(found: TrainedPromise, folder: Path, processor: Any) -> list[Path]:
    """Every model with its tokenizer or processor, so that each folder can be loaded by itself."""
    makers = processor if isinstance(processor, tuple) else (processor,)
    places = []
    for number in range(len(found.weights)):
        place = folder if len(found.weights) == 1 else folder / f"model-{number + 1}"
        found.load(number).save_pretrained(place)  # type: ignore[operator]
        for maker in makers:
            if callable(getattr(maker, "save_pretrained", None)):
                maker.save_pretrained(place)
        places.append(place)
    return places


def print_expected(rows: list[ExpectedPromise], count: int, error: float) -> None:
    """What each way would promise, before anything is trained."""
    table = Table(title=f"If models err on {100 * error:g} %, {count:,} examples promise", title_justify="left")
    for heading in ("How", "trained on", "tested on", "bound"):
        table.add_column(heading, justify="left" if heading == "How" else "right")
    table.add_column("about")
    for row in rows:
        table.add_row(row.how, f"{row.trained_on:,}", f"{row.tested_on:,}", rounded_up(row.error_bound), row.says)
    open_console().print(table)


def print_after(call: Run, result: Promise, found: TrainedPromise, places: list[Path]) -> None:
    """The promise as the command always shows it, and where the models are."""

    def show() -> None:
        print_promise(result, title=f"Promise, {found.how}")
        if len(places) > 1:
            drawn = places[found.draw(call.config.seed)]
            print(f"\nDrawn at random, with the seed, and what the promise is about: {drawn}")
        else:
            print(f"\nThe model: {places[0]}")

    result.save(places[0].parent / "promise.json" if len(places) > 1 else places[0] / "promise.json")
    call.finish({"output": result.save}, show)
