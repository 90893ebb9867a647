"""The demonstration that ``make demo`` runs, in its tiny mode."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from hf_pacgen import PACGenResult

ROOT = Path(__file__).parents[1]


def test_demo_trains_scores_and_writes(tmp_path: Path) -> None:
    script, output = ROOT / "examples" / "digits_vit.py", tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, str(script), "--smoke", "--output", str(output)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    for phrase in ("96 digits", "Training loss", "the gap is", "K(η)", "classifier", f"Written to {output}"):
        assert phrase in done.stdout
    result = PACGenResult.load(output)
    assert (result.num_examples, result.eta, result.estimator) == (96, 96, "blend")


def test_demo_refuses_an_output_without_a_folder(tmp_path: Path) -> None:
    demo = runpy.run_path(str(ROOT / "examples" / "digits_vit.py"), run_name="demo")
    with pytest.raises(SystemExit, match=r"folder .*nowhere does not exist"):
        demo["main"](["--output", str(tmp_path / "nowhere" / "result.json")])


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_every_example_shows_its_command_line_and_is_short(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert f"python examples/{script.name}" in text.split('"""')[1]
    assert text.count("\n") < 150
