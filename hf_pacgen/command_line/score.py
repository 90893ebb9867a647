"""``hf-pacgen score``: PACGen of a model on its training data, from one command."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hf_pacgen.command_line.run_options import Run, RunArguments
from hf_pacgen.config import ScoreConfig
from hf_pacgen.config.settings import Count, option
from hf_pacgen.measures.pacgen import pacgen
from hf_pacgen.show.tables import print_report


@dataclass(frozen=True, kw_only=True)
class ScoreArguments(RunArguments):
    """The same, for a run that survives being killed."""

    checkpoint_dir: str | None = option(
        None, "Folder in which the state is saved, from which the same command goes on after a kill."
    )
    checkpoint_every: Count = option(50, "Number of batches of a process after which its state is saved.")


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
        """,
    )
    args, subject = call.args, call.load(call.models[0])
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
