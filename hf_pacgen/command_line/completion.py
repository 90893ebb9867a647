"""Completion in a shell, by argcomplete where it is installed: ``eval "$(register-python-argcomplete hf-pacgen)"``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

ASKED = "_ARGCOMPLETE"
"""What the shell sets when it asks for completions; its value is the place of the first word that counts."""
EXIT_CODES = "Exit codes: 0 done; 2 bad input, said in one line on standard error; 130 interrupted."
"""What every help ends with."""


def complete(commands: Sequence[str]) -> None:
    """Answer a shell that asks what may follow, and leave; otherwise do nothing, and import nothing.

    The flags are those of a table: the parsers of the commands would import torch, which takes seconds for every key.
    """
    if ASKED not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:  # asked by the completion of another installation
        return
    asked = _asked_command(commands)
    argcomplete.autocomplete(_of_words(commands) if asked is None else _of_command(asked))


def _asked_command(commands: Sequence[str]) -> str | None:
    """The command whose words a shell asks to be completed; None where it still types the command."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if len(words) < 2 or words[1] not in commands or (len(words) == 2 and not line.endswith(" ")):
        return None
    # for the command's own parser, its name is the program's
    os.environ[ASKED] = str(int(os.environ[ASKED]) + 1)
    return words[1]


def _of_words(commands: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--version", action="store_true")
    command: Any = parser.add_argument("command", nargs="?")
    command.completer = lambda **_: list(commands)  # where argcomplete looks
    return parser


def _of_command(name: str) -> argparse.ArgumentParser:
    from hf_pacgen.command_line.flags import CHOICES, FLAGS, SEVERAL, SWITCHES

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")  # files and folders, by themselves
    switches, several = SWITCHES.split(), SEVERAL.split()
    for flag in FLAGS[name].split():
        if flag in switches:
            parser.add_argument(flag, action="store_true", dest=flag)
        else:
            choices = CHOICES[flag].split() if flag in CHOICES else None
            parser.add_argument(flag, dest=flag, nargs="+" if flag in several else None, choices=choices)
    return parser
