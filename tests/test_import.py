"""Importing hf_pacgen is cheap: what a score does not need is loaded when it is first asked for."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_pacgen

HEAVY = "datasets evaluate gradio matplotlib pandas peft pyarrow rich scipy sklearn trl".split()
LATER = hf_pacgen._LATER


def loaded_by(*imports: str) -> list[set[str]]:
    """Names of the modules that a fresh process has after each of these imports."""
    code = "import sys\n" + "\n".join(f"{line}; print(*sys.modules)" for line in imports)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(hf_pacgen.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_an_import_brings_no_more_than_it_needs() -> None:
    package, certificates = loaded_by("import hf_pacgen", "from hf_pacgen import certify")
    assert "hf_pacgen.measures.pacgen" in package and LATER["certify"] in certificates
    # transformers' models, of which a prior may be one, load some of these where they are installed
    (models,) = loaded_by("import transformers.modeling_utils, transformers.data")
    assert "transformers.trainer" not in models
    assert package & {*HEAVY, *LATER.values(), "transformers.trainer"} - models == set()
    assert certificates & {*HEAVY, "transformers.trainer"} - models == set()


def test_what_is_loaded_later_is_what_type_checkers_are_told() -> None:
    (told,) = [
        node
        for node in ast.parse(Path(hf_pacgen.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    imports = [node for node in told.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == LATER


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'hf_pacgen' has no attribute 'pacgn'"):
        hf_pacgen.pacgn  # noqa: B018
