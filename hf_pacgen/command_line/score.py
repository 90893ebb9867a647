"""``hf-pacgen score``: PACGen of a model on its training data, from one command."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hf_pacgen.command_line.inputs.load import load_subject
from hf_pacgen.command_line.inputs.models import ModelArguments
from hf_pacgen.command_line.inputs.tables import DataArguments
from hf_pacgen.command_line.parser import CommandParser
from hf_pacgen.command_line.quiet import quiet
from hf_pacgen.command_line.run_options import RunArguments, check_output, choose_place
from hf_pacgen.config import ScoreConfig
from hf_pacgen.config.settings import check_number, option
from hf_pacgen.errors import InputError
from hf_pacgen.measures.pacgen import pacgen
from hf_pacgen.results.pacgen import PACGenResult
from hf_pacgen.show.tables import print_report

__all__ = ["ScoreArguments", "run"]


@dataclass(frozen=True, kw_only=True)
class ScoreArguments(RunArguments):
    """The same, for a run that survives being killed."""

    checkpoint_dir: str | None = option(
        None, "Folder in which the state is saved, from which the same command goes on after a kill."
    )
    checkpoint_every: int = option(50, "Number of batches of a process after which its state is saved.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "checkpoint_every", minimum=1, integer=True)


def run(argv: list[str]) -> None:
    """Score, print and save.

    Raises:
        InputError: bad input of any kind.
    """
    parser = CommandParser(
        (ModelArguments, DataArguments, ScoreArguments, ScoreConfig),
        prog="hf-pacgen score",
        group="measurement",
        usage="hf-pacgen score MODEL --dataset NAME_OR_FILE [options]",
        description="PACGen of a model on its training data: how well its solution should generalize. Lower is better.",
        epilog="Example: hf-pacgen score ./my-model --dataset train.parquet --max-examples 512 --output result.json",
    )
    parser.add_argument("model", metavar="MODEL", help="The model: a folder, or an id on the Hugging Face hub.")
    model_args, data_args, run_args, config, positional = parser.settings(argv)
    check_output(run_args.output)
    device, accelerator = choose_place(model_args.device)
    subject = load_subject(positional.model, model_args, data_args, device=device, seed=config.seed)
    with parser.refusals(), quiet():
        result = pacgen(
            subject.model,
            subject.examples,
            config=config,
            batch_size=run_args.batch_size,
            accelerator=accelerator,
            progress=run_args.progress,
            checkpoint_dir=run_args.checkpoint_dir,
            checkpoint_every=run_args.checkpoint_every,
        )
    if accelerator is not None and not accelerator.is_main_process:
        return
    result = dataclasses.replace(result, status=(*subject.notes, *result.status))
    unsaved = _save(result, run_args.output)  # first, so that a closed terminal does not lose it
    shown = dataclasses.replace(result, status=tuple(map(parser.in_flags, result.status)))
    print_report(shown, title=subject.title, top_modules=run_args.top_modules)
    if unsaved is not None:
        raise InputError(f"--output {run_args.output!r} could not be written: {unsaved}.") from unsaved
    if run_args.output is not None:
        print(f"\nWritten to {run_args.output}")


def _save(result: PACGenResult, output: str | None) -> OSError | None:
    if output is not None:
        try:
            result.save(output)
        except OSError as error:
            return error
    return None
