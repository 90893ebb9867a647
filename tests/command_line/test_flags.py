"""The table of flags is that of the commands' own parsers."""

from __future__ import annotations

from typing import Any

import flag_table
import pytest

from hf_pacgen.command_line import flags


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(flag_table.source(), names)
    return names


@pytest.mark.parametrize("table", ["FLAGS", "SWITCHES", "SEVERAL", "CHOICES"])
def test_the_flags_that_a_shell_completes_are_those_of_the_commands(table: str, made: dict[str, Any]) -> None:
    assert made[table] == getattr(flags, table), "Run python tests/flag_table.py"
