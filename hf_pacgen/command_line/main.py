"""The command ``hf-pacgen``: finds the subcommand and turns bad input into one clear line and exit code 2.

A subcommand is the module of its name here, with ``run(argv)`` that raises :class:`~hf_pacgen.errors.InputError` on
bad input; it joins by a line in ``COMMANDS``, and is imported only when it is called.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from hf_pacgen import __version__
from hf_pacgen.command_line.completion import EXIT_CODES, complete
from hf_pacgen.errors import InputError

COMMANDS = {
    "score": "PACGen of a model on its training data",
    "sharpness": "sharpness and top curvature of a solution",
    "compare": "all measures of several checkpoints, side by side",
    "promise": "what error a model may be promised on new examples",
    "predict": "predictions averaged over noise on the weights",
    "certify": "bound a model's error on new examples",
    "card": "write a result into a model card",
    "register": 'make evaluate.load("pacgen") work everywhere',
}
OK, BAD_INPUT, INTERRUPTED = 0, 2, 130  # as argparse and shells have it


def main(argv: list[str] | None = None) -> int:
    """Run ``hf-pacgen`` with the given words; the exit code is 0, 2 for bad input, 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that has no Ψ shows '?' instead of failing
    complete(list(COMMANDS))
    parser = _parser()
    words = sys.argv[1:] if argv is None else argv
    try:
        # only the first word is ours; a flag that argparse does not know is no command either
        asked, unknown = parser.parse_known_args(words[:1])
        name = asked.command or "".join(unknown)
        if not name:
            parser.print_help(sys.stderr)  # nothing was asked, so nothing belongs on standard output
            return BAD_INPUT
        if name not in COMMANDS:
            known = ", ".join(COMMANDS)
            raise InputError(f"There is no command {name!r}; expected one of {known}. See 'hf-pacgen --help'.")
        # imported now: torch and transformers take seconds, and --help needs neither
        importlib.import_module(f"hf_pacgen.command_line.{name}").run(words[1:])
    except InputError as error:
        if os.environ.get("RANK", "0") == "0":  # under several processes all meet the same error
            print(f"hf-pacgen: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("hf-pacgen: interrupted", file=sys.stderr)
        return INTERRUPTED
    return OK


def _parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:12}{summary}" for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="hf-pacgen",
        usage="hf-pacgen COMMAND ...",
        description="How well should a model's solution generalize? PACGen measures it from the training data alone.",
        epilog=f"commands:\n{commands}\n\nHelp on a command: hf-pacgen COMMAND --help\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    # no subparsers of argparse: they would need every command's flags, and so every import
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    return parser
