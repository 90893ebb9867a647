"""Completion in a shell, by argcomplete where it is installed: ``eval "$(register-python-argcomplete hf-pacgen)"``."""

from __future__ import annotations

import argparse
import os

ASKED = "_ARGCOMPLETE"
"""What the shell sets when it asks for completions; its value is the place of the first word that counts."""
EXIT_CODES = "Exit codes: 0 done; 2 bad input, said in one line on standard error; 130 interrupted."
"""What every help ends with."""


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks what may follow, and leave; otherwise do nothing, and import nothing."""
    if ASKED not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:  # asked by the completion of another installation
        return
    argcomplete.autocomplete(parser)


def asked_command(commands: list[str]) -> str | None:
    """The command whose words a shell asks to be completed; None where it does not ask, or still types the command."""
    if ASKED not in os.environ:
        return None
    words = os.environ.get("COMP_LINE", "").split()
    if len(words) < 2 or words[1] not in commands or (len(words) == 2 and not os.environ["COMP_LINE"].endswith(" ")):
        return None
    # for the command's own parser, its name is the program's
    os.environ[ASKED] = str(int(os.environ[ASKED]) + 1)
    return words[1]
