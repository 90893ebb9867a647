"""What a Trainer leaves of its run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_pacgen.model.run_state import STATE, read_state, run_of, state_files


def test_a_run_and_its_checkpoints(tmp_path: Path) -> None:
    for name in ("run/checkpoint-1", "run/checkpoint-20", "run/checkpoint-x"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / STATE).write_text(json.dumps({"name": name}))
    run = tmp_path / "run"
    assert run_of(run / "checkpoint-20") == run == run_of(run)
    assert run_of(run / "checkpoint-x") == run / "checkpoint-x"
    assert [file.parent.name for file in state_files(run)][:2] == ["checkpoint-1", "checkpoint-20"]
    assert [read_state(file)["name"] for file in state_files(run / "checkpoint-1")] == ["run/checkpoint-1"]
    (run / STATE).write_text("[]")
    assert next(state_files(run)) == run / STATE
    with pytest.raises(ValueError, match="expected a JSON object, got list"):
        read_state(run / STATE)
