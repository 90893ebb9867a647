"""``hf-pacgen card``: what it writes, and what it says to bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import hf_pacgen.cards
import peft
import pytest
import saved_models
import torch
from command_runs import QUICK
from huggingface_hub import metadata_load
from sample_cards import CERTIFICATE, metrics
from sample_results import sample_result
from transformers import AutoModelForSequenceClassification

from hf_pacgen import PACGenResult
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


def scored(folder: Path, file: Path, data: Path, *words: str) -> list[str]:
    assert main(["score", str(folder), "--dataset", str(data), "--output", str(file), *QUICK, *words]) == 0
    return ["card", str(file), "--model", str(folder)]


@pytest.mark.parametrize("words", [(), ("--dtype", "bfloat16")])
def test_a_result_of_other_weights_is_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    folder, data, result = tmp_path / "model", runs[0].parents[1] / "train.csv", tmp_path / "r.json"
    shutil.copytree(runs[1], folder)
    card = scored(folder, result, data, *words)
    capsys.readouterr()
    assert main(card) == 0 and "not compared" not in capsys.readouterr().out
    (folder / "README.md").unlink()
    shutil.copy(runs[2] / "model.safetensors", folder)
    assert main(card) == 2
    assert re.search("r.json' is of other weights .*Give its own result, or .* --force", capsys.readouterr().err)
    assert not (folder / "README.md").exists()
    assert main([*card, "--force"]) == 0 and metrics(folder)["pacgen"]["value"] == PACGenResult.load(result).score
    (folder / "model.safetensors").unlink()
    assert main(card) == 2
    assert "cannot be compared with those that" in capsys.readouterr().err


def test_a_result_that_does_not_say_is_taken_with_a_word(
    folder: Path, result_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["card", str(result_file), "--model", str(folder)]) == 0
    assert "does not say which weights it is of" in capsys.readouterr().out


def lora(folder: Path, base: Path, seed: int) -> Path:
    """An adapter of a classifier, made at random."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(str(folder))
    return folder


def test_a_result_of_a_base_in_4_bits_is_known_by_its_adapter(runs: list[Path], tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("bitsandbytes")
    base, data = saved_models.bert(tmp_path / "base"), runs[0].parents[1] / "train.csv"
    folder, other = lora(tmp_path / "adapter", base, 0), lora(tmp_path / "other", base, 1)
    card = scored(folder, tmp_path / "r.json", data, "--load-in-4bit")
    assert main(card) == 0 and "not compared" not in capsys.readouterr().out
    index: Any = metadata_load(folder / "README.md")
    assert index["model-index"][0]["results"][0]["task"]["type"] == "text-classification"
    assert main([*card[:-1], str(other)]) == 2
    assert "is of other weights" in capsys.readouterr().err
    assert main([*card[:-1], str(base)]) == 2
    assert "(no adapter)" in capsys.readouterr().err
    before = json.loads((tmp_path / "r.json").read_text())
    del before["origin"]["model"]["adapter"]
    (tmp_path / "r.json").write_text(json.dumps(before))
    assert main(card) == 2
    assert "a base in 4 bits has no checksum that is the same everywhere" in capsys.readouterr().err


def test_a_run_stands_for_the_checkpoint_that_was_scored(runs: list[Path], tmp_path: Path, capsys: Any) -> None:
    run, data = tmp_path / "run", runs[0].parents[1] / "train.csv"
    for step, model in ((5, runs[1]), (10, runs[2])):
        shutil.copytree(model, run / f"checkpoint-{step}")
    for words in ((), ("--checkpoint", "5")):
        assert main(scored(run, tmp_path / "r.json", data, *words)) == 0
        assert metrics(run)["pacgen"]["value"] == PACGenResult.load(tmp_path / "r.json").score
    shutil.rmtree(run / "checkpoint-5")
    capsys.readouterr()
    assert main(["card", str(tmp_path / "r.json"), "--model", str(run)]) == 2
    assert "is of other weights" in capsys.readouterr().err


def test_an_adapters_result_and_a_certificate(runs: list[Path], tmp_path: Path, capsys: Any) -> None:
    base = saved_models.bert(tmp_path / "base", head=False)
    model = AutoModelForSequenceClassification.from_pretrained(base)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(str(tmp_path / "adapter"))
    data = runs[0].parents[1] / "train.csv"
    card = scored(tmp_path / "adapter", tmp_path / "r.json", data)
    assert main(card) == 0
    certify = ["certify", str(runs[0]), "--prior", "zero", "--dataset", str(data), "--draws", "2"]
    assert main([*certify, "--output", str(tmp_path / "c.json")]) == 0
    capsys.readouterr()
    assert main([*card, "--certificate", str(tmp_path / "c.json")]) == 2
    assert "c.json' is of other weights" in capsys.readouterr().err
