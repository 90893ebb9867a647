"""The folder of a training run stands for one of its checkpoints, or for all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_runs import QUICK, Run, refused

from hf_pacgen import PACGenResult
from hf_pacgen.command_line.inputs.runs import checkpoints, chosen, expanded
from hf_pacgen.errors import InputError


def made(folder: Path, *steps: int, best: str | None = None, **files: str) -> Path:
    """A run as far as names go: empty weights, and what its last checkpoint says of the best."""
    for step in steps:
        path = folder / f"checkpoint-{step}"
        path.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (path / name).touch()
        (path / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": best}))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    run = made(tmp_path / "run", 1000, 200, 30)
    (run / "checkpoint-5000").mkdir()  # killed while it was saved
    (run / "checkpoint-50x").mkdir()
    assert [path.name for path in checkpoints(run)] == ["checkpoint-30", "checkpoint-200", "checkpoint-1000"]
    assert chosen(str(run)) == chosen(str(run), "last") == str(run / "checkpoint-1000")
    assert chosen(str(run), "200") == chosen(str(run), "checkpoint-200") == str(run / "checkpoint-200")
    assert expanded([str(run)]) == [str(run / f"checkpoint-{step}") for step in (30, 200, 1000)]
    other = made(tmp_path / "other", 7)
    assert expanded([str(run), str(other)]) == [str(run / "checkpoint-1000"), str(other / "checkpoint-7")]
    assert expanded([str(run)], "200") == [str(run / "checkpoint-200")]
    assert chosen("org/model") == "org/model" and expanded(["org/model"]) == ["org/model"]


def test_the_best_one_is_found_though_the_run_has_moved(tmp_path: Path) -> None:
    run = made(tmp_path / "run", 10, 20, 30, best="/home/someone/out/checkpoint-20")
    assert chosen(str(run), "best") == str(run / "checkpoint-20")
    windows = made(tmp_path / "windows", 10, 20, best=r"C:\out\checkpoint-10")
    assert chosen(str(windows), "best") == str(windows / "checkpoint-10")


def test_a_model_with_checkpoints_in_it_is_itself(tmp_path: Path) -> None:
    run = made(tmp_path / "run", 10, 20, config__json="{}")
    assert chosen(str(run)) == str(run) and chosen(str(run), "last") == str(run / "checkpoint-20")
    assert expanded([str(run)]) == [str(run / "checkpoint-10"), str(run / "checkpoint-20")]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("best", "has no best checkpoint: its trainer_state.json names none.*'last' or a step"),
        ("15", "has no checkpoint-15 with weights.*it has checkpoint-10, checkpoint-20"),
        ("newest", "--checkpoint must be 'last', 'best' or the step of a checkpoint, such as 200; got 'newest'"),
    ],
)
def test_checkpoints_that_there_are_not(tmp_path: Path, which: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        chosen(str(made(tmp_path / "run", 10, 20)), which)


def test_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"has no checkpoint-N in it that holds a model. Expected the folder of a train"
    ):
        chosen(str(tmp_path / "empty"), "last")
    with pytest.raises(InputError, match=r"'org/model' is no folder here"):
        chosen("org/model", "best")
    run = made(tmp_path / "run", 10, best="checkpoint-4")
    with pytest.raises(InputError, match=r"no checkpoint-4 with weights \(--checkpoint best, by trainer_state.json\)"):
        chosen(str(run), "best")
    (run / "checkpoint-10" / "trainer_state.json").write_text("{")
    with pytest.raises(InputError, match=re.escape("trainer_state.json' is no state")):
        chosen(str(run), "best")


def test_score_takes_the_last_checkpoint(run: Run, runs: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for step, path in zip((9, 10), runs, strict=False):
        (folder / f"checkpoint-{step}").symlink_to(path)
    data = ("--dataset", runs[0].parents[1] / "train.csv", *QUICK)
    for place, name in ((folder, "whole"), (folder / "checkpoint-10", "last")):
        code, out, _ = run("score", place, *data, "--output", tmp_path / name)
        assert code == 0 and "checkpoint-10 on train.csv" in out
    assert PACGenResult.load(tmp_path / "whole").score == PACGenResult.load(tmp_path / "last").score
    refused(
        run, "model folder '.*' has no config.json: .*or a training run with checkpoint-N", "score", tmp_path, *data
    )
