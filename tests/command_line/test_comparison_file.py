"""The files of a comparison: what is in them is not measured again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from command_runs import Run

from hf_pacgen.command_line.comparison_file import read_runs, same_run, save_json
from hf_pacgen.errors import InputError
from hf_pacgen.measures.comparison import measure_all
from hf_pacgen.results.measures import Measures

FIXTURES = Path(__file__).parents[1] / "results" / "fixtures"
FOUND = Measures.from_dict(json.loads((FIXTURES / "compare-0.1.json").read_text())["runs"][0])


def test_a_run_that_is_in_the_file_is_not_measured_again(
    run: Run, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for step, path in zip((200, 1000), runs, strict=False):
        (folder / f"checkpoint-{step}").symlink_to(path)
    train = runs[0].parents[1] / "train.csv"
    words = ("--lipschitz-directions", 0, "--no-progress", "--output", tmp_path / "m.json")
    measured: list[str] = []
    original = measure_all

    def counted(*args: Any, name: str, **options: Any) -> Measures:
        measured.append(name)
        if name in stop:
            raise KeyboardInterrupt
        return original(*args, name=name, **options)

    monkeypatch.setattr("hf_pacgen.command_line.compare.measure_all", counted)
    stop = ["checkpoint-1000"]
    assert run("compare", folder, "--dataset", train, *words)[0] == 130
    assert measured == ["checkpoint-200", "checkpoint-1000"]  # in the order of their steps
    stop.clear()
    code, out, _ = run("compare", folder, "--dataset", train, *words)
    assert code == 0 and measured[2:] == ["checkpoint-1000"] and "1 of 2 runs were in the file already" in out
    assert "no longer in it" not in out
    first = json.loads((tmp_path / "m.json").read_text())["runs"]
    assert [row["name"] for row in first] == ["checkpoint-200", "checkpoint-1000"]
    assert {key: first[0]["origin"]["data"][key] for key in ("name", "rows")} == {"name": [str(train)], "rows": 5}
    for changed in (
        ("--dataset", runs[0].parents[1] / "test.csv"),  # other labels
        ("--dataset", train, "--gamma", 0.2),
        ("--dataset", train, "--measures", "score,relative,sharpness", "--draws", 2),
    ):
        measured.clear()
        assert run("compare", folder, *changed, *words)[0] == 0 and len(measured) == 2, changed
    measured.clear()
    assert run("compare", folder, "--dataset", train, *words)[0] == 0 and len(measured) == 2  # of other draws
    assert json.loads((tmp_path / "m.json").read_text())["runs"][0]["score"] == first[0]["score"]
    # the file has what was named, and says what it has lost
    code, out, _ = run("compare", runs[0], "--dataset", train, *words)
    said = " ".join(out.split())
    assert code == 0 and "which were not named and are no longer in it: checkpoint-1000." in said
    assert [row["name"] for row in json.loads((tmp_path / "m.json").read_text())["runs"]] == [runs[0].name]


def test_what_cannot_be_known_is_measured() -> None:
    origin = {"model": {"weights": "a"}, "data": {"fingerprint": "b"}, "versions": {"hf_pacgen": "1"}}
    settings = {"settings": {"measures": ["score"], "batch_size": 8}}
    known = dataclasses.replace(FOUND, origin=origin | settings)
    assert same_run([FOUND, known], origin | settings) is known
    more = {"settings": {"measures": ["score", "relative"], "batch_size": 8}}
    assert same_run([known], origin | more) is None
    for part, value in (("model", {"weights": None}), ("data", {"fingerprint": None}), ("test", None)):
        stranger: dict[str, Any] = origin | settings | {part: value}
        assert same_run([dataclasses.replace(FOUND, origin=stranger)], stranger) is None, part


def test_another_file_is_not_overwritten(tmp_path: Path) -> None:
    assert read_runs(None) == read_runs(str(tmp_path / "none")) == []
    for text in ("{", "[]", '{"runs": 1}', '{"runs": [{}]}'):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(InputError, match="exists, and is no comparison: it would be overwritten"):
            read_runs(str(tmp_path / "other.json"))
    save_json([FOUND], str(tmp_path / "m.json"))
    assert [row.name for row in read_runs(str(tmp_path / "m.json"))] == [FOUND.name]
