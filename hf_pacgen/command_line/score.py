"""``hf-pacgen score``: PACGen of a model on its training data, from one command."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from hf_pacgen.command_line.inputs.models import without_weights
from hf_pacgen.command_line.run_options import Run, RunArguments
from hf_pacgen.config import ScoreConfig
from hf_pacgen.config.settings import Count, option
from hf_pacgen.errors import InputError
from hf_pacgen.measures.pacgen import pacgen
from hf_pacgen.measures.plan import plan
from hf_pacgen.show.plan import print_plan
from hf_pacgen.show.tables import print_report


@dataclass(frozen=True, kw_only=True)
class ScoreArguments(RunArguments):
    """The same, for a run that survives being killed."""

    checkpoint_dir: str | None = option(
        None, "Folder in which the state is saved, from which the same command goes on after a kill."
    )
    checkpoint_every: Count = option(50, "Number of batches of a process after which its state is saved.")
    dry_run: bool = option(
        False,
        "Score nothing: say what it will take, of passes, memory, bytes on the wire and time. A folder without weights "
        "will do, and with '--device meta' weights are not read.",
    )
    processes: list[int] | None = option(
        None, "With --dry-run: numbers of processes to plan for, such as '1 8 64'. By default 1."
    )


def dry_run(call: Run) -> None:
    """Plan, save and print."""
    if call.accelerator is not None:
        raise InputError("--dry-run plans in one process: start it without torchrun, and give --processes.")
    name: str = call.models[0]
    notes: tuple[str, ...] = ()
    if call.device.type != "meta" and without_weights(name, call.model_args):
        call.device = torch.device("meta")
        notes = (f"The folder {name!r} has no weights, so the plan is made of its config.json alone.",)
    subject = call.load(name)
    with call.measuring() as options:
        del options["accelerator"]
        made = plan(subject.model, subject.examples, config=call.config, processes=call.args.processes or 1, **options)
    made = dataclasses.replace(made, status=(*notes, *subject.notes, *made.status))
    shown = dataclasses.replace(made, status=call.in_flags(made.status))
    call.finish({"output": made.save}, lambda: print_plan(shown, title=f"What a score takes of {subject.title}"))


def run(argv: list[str]) -> None:
    """Score, save and print."""
    call = Run(
        "score",
        argv,
        ScoreArguments,
        ScoreConfig,
        description="PACGen of a model on its training data: how well its solution should generalize. Lower is better.",
        examples="""
        ./my-model --dataset train.parquet --max-examples 512 --output result.json
        ./run --checkpoint best --dataset train.csv
        ./adapter --dataset train.jsonl --load-in-4bit --output - | jq .score
        ./my-model --dataset train.parquet --dry-run --processes 1 8
        """,
    )
    args = call.args
    if args.dry_run:
        dry_run(call)
        return
    if args.processes is not None:
        raise InputError("--processes is for --dry-run; torchrun starts the processes of a score. Leave it out.")
    if call.device.type == "meta":
        raise InputError("--device meta has no weights to score: it is for --dry-run. Give 'cpu', 'cuda' or 'auto'.")
    subject = call.load(call.models[0])
    kept = {"checkpoint_dir": args.checkpoint_dir, "checkpoint_every": args.checkpoint_every}
    with call.measuring() as options:
        result = pacgen(subject.model, subject.examples, config=call.config, **kept, **options)
    origin = call.origin(result, subject, call.models[0])
    result = dataclasses.replace(result, status=(*subject.notes, *result.status), origin=origin)
    # the file speaks the library's words, the terminal those of the command
    shown = dataclasses.replace(result, status=call.in_flags(result.status))
    call.finish(
        {"output": result.save},
        lambda: print_report(shown, title=f"PACGen of {subject.title}", top_modules=args.top_modules),
    )
