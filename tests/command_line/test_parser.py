"""Flags come from the settings, and a wrong word is one line."""

from __future__ import annotations

import pytest
from command_runs import Run, refused

from hf_pacgen import ScoreConfig
from hf_pacgen.command_line.main import main


def test_help_is_written_once_in_the_settings(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["score", "--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for setting in ScoreConfig.__dataclass_fields__.values():
        assert f"--{setting.name.replace('_', '-')}" in text
        assert " ".join(setting.metadata["help"].split()[:4]) in text
    assert "_args" not in text and "(default: None)" not in text and "Estimator." not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "no command 'frobnicate'; expected one of score"),
        (["score"], "required: --dataset, MODEL. Usage: hf-pacgen score MODEL --dataset"),
        (["score", "m"], "required: --dataset"),
        (
            ["score", "--dataset", "d", "m"],
            "required: MODEL. It comes first, since --dataset takes all names that foll",
        ),
        (["score", "m", "--dataset", "d", "--gama", "1"], r"Unknown --gama: did you mean --gamma\? Usage"),
        (["score", "m", "--dataset", "d", "--gamma", "-1"], r"gamma must be a finite number of at least 0; got -1\.0"),
        (["score", "m", "--dataset", "d", "--gamma", "0", "--epsilon", "0"], "gamma and epsilon are both 0"),
        (["score", "m", "--dataset", "d", "--gamma", "x"], "--gamma: invalid float value: 'x'"),
        (["score", "m", "--dataset", "d", "--eta", "all"], "eta must be a positive number, or 'n'.*got 'all'"),
        (["score", "m", "--dataset", "d", "--estimator", "guess"], "invalid choice: 'guess'.*blend"),
        (
            ["score", "m", "--dataset", "d", "--batch-size", "0"],
            ": --batch-size must be an integer of at least 1; got 0",
        ),
        (["score", "m", "--dataset", "d", "--top-modules", "-1"], ": --top-modules must be an integer of at least 0"),
        (
            ["score", "m", "--dataset", "d", "--max-length", "0"],
            ": --max-length must be an integer of at least 1; got 0",
        ),
        (["score", "m", "--dataset", "d", "--device", "abacus"], "--device 'abacus' cannot be used"),
        (["score", "m", "--dataset", "d.csv"], "data set file 'd.csv' does not exist. Looked in"),
        (["score", "m", "--dataset", "a", "b"], "data set file 'a' does not exist"),
        (["score", "./m", "--dataset", "d"], "model folder './m' does not exist. Expected a folder written by"),
        (
            ["score", "no/such-model", "--dataset", "d"],
            "model 'no/such-model' is no folder here, and could not be loaded",
        ),
    ],
)
def test_bad_words(run: Run, words: list[str], message: str) -> None:
    refused(run, message, *words)
