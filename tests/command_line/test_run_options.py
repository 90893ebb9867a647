"""What the measuring commands share: results that find no place, too little memory, several processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import saved_models
import torch
from command_runs import QUICK, Run, refused, write_csv
from transformers import AutoModelForSequenceClassification

from hf_pacgen import PACGenResult


def test_result_that_cannot_be_written_is_printed(
    run: Run, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(result: PACGenResult, path: str) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(PACGenResult, "save", fail)
    words = ("score", models["classifier"], "--dataset", write_csv(tmp_path / "t.csv"), *QUICK)
    code, out, err = run(*words, "--output", tmp_path / "r.json")
    assert code == 2 and "K(η)" in out and "could not be written: the disk is full" in err


def test_what_pacgen_refuses_is_one_line_too(run: Run, tmp_path: Path) -> None:
    folder = saved_models.bert(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.classifier.weight.data[0, 0] = float("nan")
    model.save_pretrained(folder)
    refused(run, "weights 'classifier.weight' contain NaN", "score", folder, "--dataset", write_csv(tmp_path / "t.csv"))


@pytest.mark.parametrize("command", ["score", "certify", "sharpness", "compare"])
def test_too_little_memory(
    run: Run, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def fail(*arguments: Any, **settings: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    measure = {"score": "pacgen", "certify": "certify", "sharpness": "expected_sharpness", "compare": "measure_all"}
    monkeypatch.setattr(f"hf_pacgen.command_line.{command}.{measure[command]}", fail)
    words = (command, models["classifier"], "--dataset", write_csv(tmp_path / "t.csv"), "--no-progress")
    prior = ("--prior", "zero") if command == "certify" else ()
    refused(run, "device is out of memory: take a smaller --batch-size or --max-length", *words, *prior)


def test_results_that_find_no_room(
    run: Run, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # the superuser may write into any folder
    words = (models["classifier"], "--dataset", write_csv(tmp_path / "t.csv"), "--no-progress")
    output = tmp_path / "r.json"
    message = f"--output '{output}': the folder '{tmp_path}' cannot be written to. Choose another"
    refused(run, message, "score", *words, "--output", output)
    monkeypatch.undo()

    def full(*arguments: Any, **settings: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    few = ("--noise-scale", 0, "--eigenvalues", 0)
    monkeypatch.setattr("hf_pacgen.results.certificate.Certificate.save", full)
    for phrase, call in (
        ("worst-case rise", ("sharpness", *words, *few)),
        ("The certificate is vacuous", ("certify", *words, "--prior", "zero", "--draws", 2)),
    ):
        code, out, err = run(*call, "--output", output)
        assert code == 2 and phrase in out and "Written to" not in out  # the work is not lost
        assert re.search("--output .*r.json' could not be written: .*No space left", err) and err.count("\n") == 1


def test_two_processes_print_once_and_agree_with_one(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data, one, two = write_csv(tmp_path / "train.csv"), tmp_path / "1.json", tmp_path / "2.json"
    words = ["score", models["classifier"], "--dataset", data, *QUICK, "--batch-size", 2, "--device", "cpu"]
    assert run(*words, "--output", one)[0] == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "hf_pacgen", *map(str, words), "--output", str(two)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to") == 1
    assert PACGenResult.load(two).kl_complexity == pytest.approx(PACGenResult.load(one).kl_complexity, rel=1e-4)
