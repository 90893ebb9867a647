"""Make ``hf_pacgen/command_line/flags.py``, the flags that a shell completes: ``python tests/flag_table.py``."""

from __future__ import annotations

import argparse
import importlib
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

from hf_pacgen.command_line.main import COMMANDS
from hf_pacgen.command_line.parser import CommandParser

FILE = Path(__file__).parents[1] / "hf_pacgen" / "command_line" / "flags.py"
HEAD = '''"""The flags of every command, for completion; their parsers would import torch.  By tests/flag_table.py."""

from __future__ import annotations
'''


class _FoundError(Exception):
    pass


def actions(command: str) -> list[argparse.Action]:
    """The flags of a command, as its own parser has them."""
    found: list[argparse.Action] = []

    def stop(parser: Any, argv: list[str]) -> Any:
        found.extend(parser._actions)
        raise _FoundError

    with mock.patch.object(CommandParser, "settings", stop), suppress(_FoundError):
        importlib.import_module(f"hf_pacgen.command_line.{command}").run([])
    return [action for action in found if action.option_strings]


def source() -> str:
    """The module."""
    every = {command: actions(command) for command in COMMANDS}
    flags = {name: sorted(f for action in found for f in action.option_strings) for name, found in every.items()}
    switches = {f for found in every.values() for a in found if a.nargs == 0 for f in a.option_strings}
    several = {f for found in every.values() for a in found if a.nargs in ("+", "*") for f in a.option_strings}
    choices: dict[str, tuple[str, ...]] = {}
    for action in (action for found in every.values() for action in found if action.choices):
        for flag in action.option_strings:
            named = tuple(str(getattr(value, "value", value)) for value in action.choices or ())
            assert choices.setdefault(flag, named) == named, f"{flag} has other choices in another command"
    lines = [HEAD, "FLAGS = {"]
    for name, found in flags.items():
        lines += [f'    "{name}": (', *_wrapped(" ".join(found), 8), "    ),"]
    lines += ["}", '"""By command."""', "SWITCHES = (", *_wrapped(" ".join(sorted(switches)), 4), ")"]
    lines += ['"""Those that take no value."""', "SEVERAL = (", *_wrapped(" ".join(sorted(several)), 4), ")"]
    lines += ['"""Those that take several."""', "CHOICES = {"]
    for flag, values in sorted(choices.items()):
        lines += [f'    "{flag}": (', *_wrapped(" ".join(values), 8), "    ),"]
    return "\n".join([*lines, "}", '"""The values of those that take one of a few."""', ""])


def _wrapped(text: str, indent: int) -> list[str]:
    parts = textwrap.wrap(text, 110 - indent, break_on_hyphens=False)
    return [f'{" " * indent}"{part}{" " if part is not parts[-1] else ""}"' for part in parts]


if __name__ == "__main__":
    FILE.write_text(source(), encoding="utf-8")
