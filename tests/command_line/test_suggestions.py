"""A flag that there is not is named, with the one that was meant."""

from __future__ import annotations

import pytest
from command_runs import Run, refused

from hf_pacgen.command_line.suggestions import MEANT, complaint, meant, unknown_flags


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "m", "--data", "d.csv"], r"Unknown --data: did you mean --dataset\?"),
        (["score", "m", "--train-file=d.csv"], r"Unknown --train-file: did you mean --dataset\?"),
        (["score", "m", "--train_file", "d.csv"], r"Unknown --train_file: did you mean --dataset\?"),
        (["score", "--model", "m", "--dataset", "d"], "Unknown --model: the model is given as the first word"),
        (["score", "m", "--gama", "1", "-o", "x"], r"Unknown --gama: did you mean --gamma\? Unknown -o: .*--output\?"),
        (["compare", "m", "--test-file", "d"], r"Unknown --test-file: did you mean --eval-dataset\?"),
        (["score", "m", "--frobnicate"], r"Unknown --frobnicate\. Usage"),
        (["card", "r.json", "--modle", "m"], r"Unknown --modle: did you mean --model\?"),
    ],
)
def test_bad_flags(run: Run, words: list[str], message: str) -> None:
    refused(run, message, *words)


def test_what_is_no_flag() -> None:
    assert unknown_flags(["-1", "-0.5", "x", "--known=--y", "--", "--z"], ["--known"]) == []
    assert complaint(["--known", "-1"], ["--known"]) is None and meant("--qqq", ["--known"]) == ""


def test_nothing_means_two_flags() -> None:
    names = [name for others in MEANT.values() for name in others.split()]
    assert len(names) == len(set(names))
