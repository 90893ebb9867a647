"""The command-line parser that all subcommands share."""

from __future__ import annotations

import argparse
import dataclasses
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, NoReturn

import torch
from transformers import HfArgumentParser

from hf_pacgen.command_line.completion import EXIT_CODES
from hf_pacgen.command_line.suggestions import complaint
from hf_pacgen.errors import InputError


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # a default of nothing, or of a flag, says nothing
        plain = action.default is None or isinstance(action.default, bool)
        return action.help if plain else super()._get_help_string(action)


class CommandParser(HfArgumentParser):
    """Flags made from settings dataclasses, whose words are the help.

    It differs from its base:

    1. an error is one line, an :class:`InputError`;
    2. ``eta`` takes a number or ``n`` (the base makes ``float`` of ``float | str``);
    3. a bool is a flag without a value, so that ``--trust-remote-code MODEL`` is no error;
    4. help shows ``--max-length`` alone, though ``--max_length`` works as well.
    """

    def __init__(
        self, types: Any, command: str, *, description: str, usage: str, examples: str = "", group: str = "options"
    ) -> None:
        prog = f"hf-pacgen {command}"
        super().__init__(
            types,
            prog=prog,
            usage=f"{prog} {usage}",
            description=textwrap.fill(description, 79),
            epilog="\n".join([*_examples(prog, examples), EXIT_CODES]),
            allow_abbrev=False,  # a flag of a later release must not change what a script of today means
            formatter_class=_HelpFormatter,
        )
        self._optionals.title = group  # of settings that name none themselves
        self._action_groups.append(self._action_groups.pop(1))  # after the model and the data
        for action in self._actions:
            if action.dest == "eta":
                action.type = str  # checked, with a better message, where the settings are made
            if isinstance(action.default, Enum):  # help would show Estimator.BLEND
                action.default = action.default.value
            action.option_strings = [flag for flag in action.option_strings if "_" not in flag]

    @staticmethod
    def _parse_dataclass_field(parser: Any, field: dataclasses.Field) -> None:
        if field.type not in (bool, bool | None):
            HfArgumentParser._parse_dataclass_field(parser, field)
            return
        # a field of one word gives the same flag twice, which argparse refuses
        flags = dict.fromkeys((f"--{field.name}", f"--{field.name.replace('_', '-')}"))
        action: Any = "store_true" if field.default is False else argparse.BooleanOptionalAction
        parser.add_argument(*flags, action=action, default=field.default, help=field.metadata.get("help"))

    def error(self, message: str) -> NoReturn:
        """Raise one line instead of printing the usage and leaving."""
        if message.endswith((": MODEL", ": RUN")):  # a flag for data takes every name after it
            message += ". It comes first, since --dataset takes all names that follow it"
        usage = " ".join(self.format_usage().split()).removeprefix("usage: ")
        stop = "" if message.endswith(("?", ".")) else "."
        raise InputError(f"{message[:1].upper()}{message[1:]}{stop} Usage: {usage}; see '{self.prog} --help'.")

    def settings(self, argv: list[str]) -> tuple[Any, ...]:
        """The dataclasses, then the namespace of further arguments; what is unknown or refused is an InputError."""
        # first: argparse would ask for a required flag, and not name the wrong one that was given for it
        if (wrong := complaint(argv, self._option_string_actions)) is not None:
            self.error(wrong)
        with self.refusals():
            *settings, rest = self.parse_args_into_dataclasses(
                args=argv, look_for_args_file=False, return_remaining_strings=True
            )
        if rest:
            self.error(f"unknown {'argument' if len(rest) == 1 else 'arguments'} {' '.join(rest)}")
        return tuple(settings)

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Turns what settings or a measure refuse into the one line of a command."""
        try:
            yield
        except InputError:  # it speaks of flags already
            raise
        except torch.OutOfMemoryError as error:
            raise InputError("The device is out of memory: take a smaller --batch-size or --max-length.") from error
        except (ValueError, TypeError) as error:
            raise InputError(self.in_flags(str(error))) from error

    def in_flags(self, text: str) -> str:
        """A sentence of the library with its settings' names as the flags by which they are set here.

        Only names of several words change, such as ``max_examples``; what stands in quotation marks is the user's.
        """
        named = {action.dest for action in self._actions if "_" in action.dest and action.option_strings}
        names = "|".join(sorted(named, key=len, reverse=True))
        # no name within a longer word, a path or quotation marks, and no call; with its value, as in max_examples=5
        setting = rf"(?<![\w'\"/.-])({names})(?![\w'\"(])(?:=(\w[\w.]*))?"
        text = re.sub(rf"\w+Config\({setting}\)", self._as_flag, text)
        return re.sub(setting, self._as_flag, text)

    @staticmethod
    def _as_flag(found: re.Match[str]) -> str:
        name, value = found[1].replace("_", "-"), found[2]
        forms = {None: f"--{name}", "True": f"--{name}", "False": f"--no-{name}"}
        return forms.get(value, f"--{name} {value}")


def _examples(prog: str, lines: str) -> list[str]:
    found = [line.strip() for line in lines.splitlines() if line.strip()]
    return ["examples:", *(f"  {prog} {line}" for line in found), ""] if found else []
