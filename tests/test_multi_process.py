"""The commands of examples/multi_process.md: those for CPUs are run, the others have flags that exist."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import saved_models
import torch
from launch import on_two_processes
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_pacgen import PACGenResult
from hf_pacgen.command_line.main import main

TEXT = (Path(__file__).parents[1] / "examples" / "multi_process.md").read_text(encoding="utf-8")
COMMANDS = [re.sub(r"\\\n\s*", "", block).strip() for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)]
ON_CPU = [command for command in COMMANDS if command.startswith("OMP_NUM_THREADS=1")]
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
ROWS = [("good movie", 1), ("awful food was bad", 0), ("very fine", 1), ("not good", 0), ("a bad movie", 0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the model and the data that the commands name."""
    path = tmp_path_factory.mktemp("many")
    names: dict[str, Any] = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    saved_models.bert(path / "my-model", **names)
    with (path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *ROWS * 4])
    return path


def execute(command: str, folder: Path) -> str:
    first, *words = command.split()
    name, value = first.split("=")
    assert words[0] == "torchrun"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words[1:]],
        cwd=folder,
        env=os.environ | {name: value, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_commands_of_one_kind() -> None:
    assert len(COMMANDS) == 6 and len(ON_CPU) == 3 and len(PROGRAMS) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_score_on_two_processes(number: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = execute(ON_CPU[number], folder)
    assert printed.count("Written to result.json") == 1  # the main process alone speaks
    shared = PACGenResult.load(folder / "result.json")
    alone = ["score", str(folder / "my-model"), "--dataset", str(folder / "train.csv"), "--device", "cpu"]
    assert main([*alone, "--no-progress", "--output", str(folder / "alone.json")]) == 0
    capsys.readouterr()
    whole = PACGenResult.load(folder / "alone.json")
    assert shared.kl_complexity == pytest.approx(whole.kl_complexity, rel=1e-5)
    assert shared.num_examples == whole.num_examples == len(ROWS) * 4
    if number == 1:
        assert list((folder / "state").iterdir()) == []


@pytest.mark.slow
def test_score_of_a_sharded_model(folder: Path) -> None:
    (folder / "score_sharded.py").write_text(PROGRAMS[1], encoding="utf-8")
    assert "K(η)/m" in execute(ON_CPU[2], folder)
    result = PACGenResult.load(folder / "sharded.json")
    assert result.num_examples == 4 and result.hvp_method == "finite_difference"


def _from_python(folder: str) -> None:
    os.chdir(folder)
    model = AutoModelForSequenceClassification.from_pretrained("my-model")
    tokenizer = AutoTokenizer.from_pretrained("my-model")
    data = []
    for text, label in ROWS:
        batch = dict(tokenizer(text, return_tensors="pt"))
        data.append(batch | {"labels": torch.tensor([label])})
    exec(compile(PROGRAMS[0], "multi_process.md", "exec"), {"model": model, "data": data})


def test_the_program_runs_on_two_processes(folder: Path) -> None:
    on_two_processes(_from_python, str(folder))
    assert PACGenResult.load(folder / "result.json").num_examples == len(ROWS)


def test_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    known = capsys.readouterr().out
    for command in COMMANDS:
        _, _, ours = command.partition("hf_pacgen score")
        assert all(flag in known for flag in re.findall(r"--[a-z-]+", ours))
