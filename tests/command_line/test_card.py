"""``hf-pacgen card``: what it writes, and what it says to bad input."""

from __future__ import annotations

import json
from pathlib import Path

import hf_pacgen.cards
import pytest
from huggingface_hub import metadata_load
from sample_cards import CERTIFICATE, metrics
from sample_results import sample_result

from hf_pacgen.command_line.main import main

RESULT = sample_result()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my-model").mkdir()
    return tmp_path / "my-model"


@pytest.fixture
def result_file(tmp_path: Path) -> Path:
    RESULT.save(tmp_path / "result.json")
    return tmp_path / "result.json"


def test_the_command(folder: Path, result_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certificate = tmp_path / "certificate.json"
    certificate.write_text(json.dumps(CERTIFICATE))
    words = ["card", str(result_file), "--model", str(folder), "--certificate", str(certificate)]
    assert main([*words, "--task", "text-classification", "--dataset", "glue", "--model-name", "N"]) == 0
    assert f"Written to {folder / 'README.md'}" in capsys.readouterr().out
    (entry,) = metadata_load(folder / "README.md")["model-index"]  # type: ignore[index]
    assert (entry["name"], entry["results"][0]["dataset"]["type"]) == ("N", "glue")
    assert metrics(folder)["pacgen_certificate"]["value"] == 0.264


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{result}"], "--model is missing"),
        (["--model", "{folder}"], "RESULT.json"),
        (["{result}", "--model", "{folder}/nowhere"], "nowhere' does not exist"),
        (["{result}", "--model", "{result}"], "is a file: expected the folder of a saved model"),
        (["{folder}/no.json", "--model", "{folder}"], "no.json does not exist: expected a JSON file"),
        (["{folder}", "--model", "{folder}"], "is a folder: expected a JSON file"),
        (["{other}", "--model", "{folder}"], "version 99; this release reads version 1"),
        (["{result}", "--model", "{folder}", "--certificate", "{result}"], "A certificate must have the numbers"),
        (["{result}", "--model", "{folder}", "--tusk", "x"], "--tusk"),
    ],
)
def test_bad_words(
    words: list[str],
    message: str,
    folder: Path,
    result_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**RESULT.to_dict(), "version": 99}))
    assert main(["card", *(word.format(result=result_file, folder=folder, other=other) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_a_card_that_cannot_be_written(
    folder: Path, result_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hf_pacgen.show.cards.update.os, "replace", fail)
    assert main(["card", str(result_file), "--model", str(folder)]) == 2
    assert "cannot be written" in capsys.readouterr().err
