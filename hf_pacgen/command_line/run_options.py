"""What the commands that measure models share: their flags, their course, and the files of their results."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.command_line.inputs.fingerprint import data_fingerprint
from hf_pacgen.command_line.inputs.load import Subject, load_data, load_subject
from hf_pacgen.command_line.inputs.models import ModelArguments, choose_device
from hf_pacgen.command_line.inputs.runs import chosen, expanded
from hf_pacgen.command_line.parser import CommandParser
from hf_pacgen.command_line.quiet import quiet
from hf_pacgen.config.settings import Config, Count, Natural, option
from hf_pacgen.errors import InputError, refusing

OUTPUTS = ("output", "json", "csv", "predictions", "plot")  # the flags that name files to write
STDOUT = "-"


OUTPUT = (
    "JSON file to write to; folders are made. '-' is standard output, with nothing else on it: the tables, which "
    "otherwise are there, go to standard error."
)


@dataclass(frozen=True, kw_only=True)
class BatchArguments(Config):
    """How the command runs."""

    _argument_group_name = "run"

    batch_size: Count = option(8, "Number of examples in a batch.")
    progress: bool | None = option(
        None, "Show progress bars on standard error. By default where that is a terminal, without --quiet."
    )
    quiet: bool = option(False, "Print no tables and no bars: files are written, and errors said.")


@dataclass(frozen=True, kw_only=True)
class OutputArguments(BatchArguments):
    """And where the result goes."""

    output: str | None = option(None, OUTPUT)


@dataclass(frozen=True, kw_only=True)
class RunArguments(OutputArguments):
    """And how much of it is listed."""

    top_modules: Natural = option(8, "Number of modules to list, largest share of K(η) first; 0 lists none.")


class Run:
    """One call of a command that measures models: its settings, where it computes, and how it ends.

    ``args`` are the command's own flags, ``config`` the settings of what it measures, ``extra`` further settings,
    ``data`` which data it takes, ``words`` what its parser says; with ``expand``, a run's folder alone stands for all
    its checkpoints where ``several`` models are taken.  Bad input raises before any work begins.
    """

    def __init__(
        self,
        command: str,
        argv: list[str],
        args: type[BatchArguments],
        config: type[Config],
        *extra: type[Config],
        group: str = "measurement",
        usage: str = "MODEL --dataset NAME_OR_FILE [options]",
        several: bool = False,
        expand: bool = True,
        data: type[DataArguments] = DataArguments,
        **words: str,
    ) -> None:
        self.words = [command, *argv]
        settings = (*extra, ModelArguments, data, args, config)
        self.parser = CommandParser(settings, command, group=group, usage=usage, **words)
        metavar, count, what = ("RUN", "+", "The models") if several else ("MODEL", 1, "The model")
        said = f"{what}: a saved model, a PEFT adapter, a training run's folder, or an id on the Hugging Face hub."
        self.parser.add_argument("models", metavar=metavar, nargs=count, help=said)
        *self.extra, self.model_args, self.data_args, self.args, self.config, rest = self.parser.settings(argv)
        which = self.model_args.checkpoint
        with self.parser.refusals():
            # a run's folder stands for its checkpoints
            names: list[str] = rest.models
            self.models = expanded(names, which) if several and expand else [chosen(name, which) for name in names]
        paths = {name: getattr(self.args, name, None) for name in OUTPUTS}
        self.outputs: dict[str, str] = {name: path for name, path in paths.items() if path is not None}
        if (old := self.outputs.get("json")) is not None:
            if "output" in self.outputs:
                raise InputError("--json is the old name of --output: give one of them.")
            print("hf-pacgen: note: --json is deprecated; it is called --output now.", file=sys.stderr)
            self.outputs = {"output": old} | {name: path for name, path in self.outputs.items() if name != "json"}
        for name, path in self.outputs.items():
            _check_output(f"--{name}", path)  # before the work begins, which can take hours
        self.quiet = bool(self.args.quiet)
        bars = self.args.progress
        self.progress = bool(sys.stderr.isatty() and not self.quiet) if bars is None else bars
        self.device, self.accelerator = choose_device(self.model_args.device), None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # torchrun or accelerate started several processes
            self.accelerator = Accelerator(cpu=self.device.type == "cpu")
            self.device = self.accelerator.device  # one for each process

    def load(self, model: str) -> Subject:
        """A model with its training data."""
        # of a head that the checkpoint lacks: the seed of the measurement, so that one seed repeats the whole command
        with self.apart(), quiet() if self.quiet else nullcontext():
            return load_subject(model, self.model_args, self.data_args, device=self.device, seed=self.config.seed)

    def load_other(self, model: str, subject: Subject, data_args: DataArguments) -> Any:
        """Other data of a model that is loaded, with the labels of its training data."""
        with self.apart(), quiet() if self.quiet else nullcontext():
            return load_data(model, self.model_args, data_args, labels=subject.labels).examples

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Leaves standard output to the result, where it goes there: what else is printed goes to standard error."""
        with redirect_stdout(sys.stderr) if self.outputs.get("output") == STDOUT else nullcontext():
            yield

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.accelerator is None or self.accelerator.is_main_process

    def keep(self, write: Callable[[str], object], path: str) -> None:
        """Write what is there so far; if it cannot be written, that is said at the end."""
        with suppress(OSError):
            write(path)

    def origin(self, result: Any, subject: Subject, model: str) -> dict[str, Any]:
        """The origin of a result, with what only the command knows: names as they were given, and its words."""
        known, data = result.origin, self.data_args
        return known | {
            "model": known.get("model", {})
            | {"name": model, "revision": self.model_args.revision or known.get("model", {}).get("revision")}
            | ({"load_in_4bit": True} if self.model_args.load_in_4bit else {}),
            "data": {
                "name": data.dataset,
                "config": data.dataset_config,
                "split": data.split,
                "rows": len(subject.examples) if hasattr(subject.examples, "__len__") else None,
                "fingerprint": data_fingerprint(subject.examples),
            },
            "command": shlex.join(["hf-pacgen", *self.words]),
        }

    @contextmanager
    def measuring(self) -> Iterator[dict[str, Any]]:
        """What every measure is told of batches and processes; what it refuses is said in one line."""
        args = self.args
        with self.parser.refusals(), self.apart(), quiet():  # transformers warns of things that the result says itself
            yield {"batch_size": args.batch_size, "accelerator": self.accelerator, "progress": self.progress}

    def finish(self, files: Mapping[str, Callable[[str], object]], show: Callable[[], None]) -> None:
        """On the main process, write the files that were asked for and show the result.

        ``files`` has what writes each, by its setting.  One that cannot be written raises after the result was shown.
        """
        # all processes have the same result
        if not self.is_main:
            return
        written, failed = [], None
        for name, path in self.outputs.items():  # before anything is printed: a closed terminal must not lose it
            try:
                if path == STDOUT:
                    _print_file(files[name])
                else:
                    files[name](path)
                    written.append(f"Written to {path}")
            except OSError as error:  # a disk may be full by now
                failed = InputError(f"--{name} {path!r} could not be written: {error}.")
        if not self.quiet:
            with self.apart():
                show()
                if written:
                    print("", *written, sep="\n")
        if failed is not None:
            raise failed

    def in_flags(self, sentences: tuple[str, ...]) -> tuple[str, ...]:
        """Sentences of the library with its settings as the flags by which they are set here."""
        return tuple(map(self.parser.in_flags, sentences))


def _check_output(flag: str, output: str) -> None:
    if output == STDOUT:
        if flag != "--output":
            raise InputError(f"{flag} -: only --output goes to standard output. Give {flag} the name of a file.")
        return
    path = Path(output)
    with refusing(
        f"{flag} {output!r}: the folder {str(path.parent)!r} cannot be made", "Choose another.", kind=OSError
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        kind = {"--csv": "csv", "--plot": "png", "--predictions": "csv"}.get(flag, "json")
        name = f"the name of a {kind.upper()} file, such as {path / 'result'}.{kind}"
        raise InputError(f"{flag} {output!r} is a folder: expected {name}.")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{flag} {output!r}: the folder {str(path.parent)!r} cannot be written to. Choose another.")


def _print_file(write: Callable[[str], object]) -> None:
    """Print what a function writes into a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        write(str(file))
        print(file.read_text(encoding="utf-8"), end="", flush=True)
