"""A shell that asks for completions is answered, quickly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import Run


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hf-pacgen sc", ["score"]),
        ("hf-pacgen score --max-ex", ["--max-examples"]),
        ("hf-pacgen score m --dataset a.csv b.csv --quiet --dtype b", ["bfloat16"]),
        ("hf-pacgen compare run --task image-", ["image-classification", "image-segmentation"]),
    ],
)
def test_a_shell_completes_without_large_libraries(line: str, expected: list[str], tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    told = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    told["_ARGCOMPLETE_STDOUT_FILENAME"] = str(tmp_path / "found")
    words = [sys.executable, "-X", "importtime", "-m", "hf_pacgen"]
    done = subprocess.run(words, env={**os.environ, **told}, timeout=300, check=False, capture_output=True, text=True)
    assert (tmp_path / "found").read_text().split() == expected
    imported = {row.rpartition("|")[2].strip() for row in done.stderr.splitlines() if row.startswith("import time:")}
    assert "argparse" in imported and not {"torch", "transformers", "datasets", "rich"} & imported


def test_a_shell_that_asks_in_vain(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setenv("COMP_LINE", "hf-pacgen sc")
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert run("frobnicate")[0] == 2
