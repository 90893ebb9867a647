"""The result object of a score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sample_results import sample_result

from hf_pacgen import PACGenResult


def test_a_result_survives_a_file(tmp_path: Path) -> None:
    result = sample_result()
    path = tmp_path / "result.json"
    result.save(path)
    assert PACGenResult.load(path) == result
    assert json.loads(path.read_text())["version"] == PACGenResult.version
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    values = sample_result().to_dict()
    with pytest.raises(ValueError, match=r"has version 99; this release reads version 1"):
        PACGenResult.from_dict(values | {"version": 99})
    with pytest.raises(ValueError, match="expected a JSON object with a 'version'"):
        PACGenResult.from_dict({"score": 1.0})
    with pytest.raises(ValueError, match=r"missing \['score'\], unknown \['scores'\]"):
        PACGenResult.from_dict({("scores" if k == "score" else k): v for k, v in values.items()})
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken.json is not JSON"):
        PACGenResult.load(tmp_path / "broken.json")
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        sample_result().save(tmp_path / "nowhere" / "result.json")
