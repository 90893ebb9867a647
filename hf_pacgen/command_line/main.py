"""The command ``hf-pacgen``: finds the subcommand and turns bad input into one clear line and exit code 2.

A subcommand is a module with ``run(argv)`` that raises :class:`~hf_pacgen.errors.InputError` on bad input; it
joins by a line in ``COMMANDS``, and is imported only when it is called.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from hf_pacgen import __version__
from hf_pacgen.errors import InputError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "score": ("hf_pacgen.command_line.score", "PACGen of a model on its training data"),
    "sharpness": ("hf_pacgen.command_line.sharpness", "sharpness and top curvature of a solution"),
    "compare": ("hf_pacgen.command_line.compare", "all measures of several checkpoints, side by side"),
    "certify": ("hf_pacgen.command_line.certify", "bound a model's error on new examples"),
    "card": ("hf_pacgen.command_line.card", "write a result into a model card"),
    "register": ("hf_pacgen.command_line.register", 'make evaluate.load("pacgen") work everywhere'),
}
OK, BAD_INPUT, INTERRUPTED = 0, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run ``hf-pacgen`` with the given words; the exit code is 0, 2 for bad input, 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that has no Ψ shows '?' instead of failing
    parser = _parser()
    words = sys.argv[1:] if argv is None else argv
    try:
        asked = parser.parse_args(words[:1])
        if asked.command is None:
            parser.print_help(sys.stderr)
            return BAD_INPUT
        if asked.command not in COMMANDS:
            known = ", ".join(COMMANDS)
            raise InputError(f"There is no command {asked.command!r}; expected one of {known}. See 'hf-pacgen --help'.")
        importlib.import_module(COMMANDS[asked.command][0]).run(words[1:])
    except InputError as error:
        if os.environ.get("RANK", "0") == "0":  # under several processes all meet the same error
            print(f"hf-pacgen: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("hf-pacgen: interrupted", file=sys.stderr)
        return INTERRUPTED
    return OK


def _parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:12}{summary}" for name, (_, summary) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="hf-pacgen",
        usage="hf-pacgen COMMAND ...",
        description="How well should a model's solution generalize? PACGen measures it from the training data alone.",
        epilog=f"commands:\n{commands}\n\nHelp on a command: hf-pacgen COMMAND --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    return parser
