"""What the folder of a prior says of its training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import saved_models
import torch
from certificates import QUICK, certified
from torch import nn
from transformers import BertForSequenceClassification

from hf_pacgen.certify.records import check_record
from hf_pacgen.config import CertificateConfig

MODEL = nn.Linear(1, 1)


def state(folder: Path, **values: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps(values))
    return folder


def test_pretrained_folders_have_no_record(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    assert check_record(tmp_path, MODEL, prints=["x"], num_examples=3) is None


@pytest.mark.parametrize("name", ["run/checkpoint-6", "run", "saved"])
def test_a_checkpoint_is_asked_for_a_word(tmp_path: Path, name: str) -> None:
    state(tmp_path / "run/checkpoint-6", global_step=6, epoch=2.0, train_batch_size=8)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/training_args.bin").write_bytes(b"")
    folder = tmp_path / name
    said = "training_args.bin" if name == "saved" else "trainer_state.json"
    with pytest.raises(ValueError, match=rf"is a checkpoint of a training \(it has a {said}.*--prior-is-independent"):
        check_record(folder, MODEL)
    note = check_record(folder, MODEL, assume_independent=True)
    assert note is not None and "counts as independent of these examples, as you say" in note


@pytest.mark.parametrize(("count", "same"), [(24, True), (17, True), (16, False), (25, False)])
def test_a_state_tells_how_many_examples_it_saw(tmp_path: Path, count: int, same: bool) -> None:
    folder = state(tmp_path, global_step=6, epoch=2.0, train_batch_size=8)
    match = f"trained on as many examples as these {count}" if same else "does not say on what data"
    with pytest.raises(ValueError, match=match):
        check_record(folder, MODEL, num_examples=count)
    with pytest.raises(ValueError, match="does not say on what data"):
        check_record(state(tmp_path, global_step=0, epoch=None), MODEL, num_examples=count)
    (tmp_path / "trainer_state.json").write_text("[]")
    with pytest.raises(ValueError, match="does not say on what data"):
        check_record(tmp_path, MODEL, num_examples=count)


def test_a_checkpoint_of_the_same_run(tmp_path: Path) -> None:
    first = state(tmp_path / "run/checkpoint-1")
    last = state(tmp_path / "run/checkpoint-2")
    model: Any = nn.Linear(1, 1)
    model.config = type("Config", (), {"_name_or_path": str(last)})
    with pytest.raises(ValueError, match="of the run that the certified model comes from"):
        check_record(first, model)


def test_a_recorded_fingerprint_is_refused_whatever_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "run/checkpoint-3"
    folder.mkdir(parents=True)
    score = {"score": 1.0, "origin": {"data": {"fingerprint": "abc"}}}
    (tmp_path / "run/pacgen.json").write_text(json.dumps(score))
    assert check_record(folder, MODEL, prints=["other", None]) is None
    with pytest.raises(ValueError, match=r"has seen these examples: pacgen.json .* the same fingerprint \(abc\)"):
        check_record(folder, MODEL, prints=["abc"], assume_independent=True)
    # what was measured on held-out data says nothing of the training
    (tmp_path / "run/pacgen.json").write_text(json.dumps({**score, "error_bound": 0.1}))
    assert check_record(folder, MODEL, prints=["abc"]) is None
    (tmp_path / "run/pacgen.json").write_text(json.dumps({"origin": {"data": []}}))
    assert check_record(folder, MODEL, prints=["abc"]) is None


def test_certify_asks_of_folders_and_of_models_that_come_from_them(tmp_path: Path) -> None:
    saved_models.bert(tmp_path / "base")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base").eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    tokens = torch.randint(4, 16, (40, 6))
    data = [{"input_ids": tokens[i : i + 4], "labels": tokens[i : i + 4, 0] % 2} for i in range(0, 40, 4)]
    assert certified(model, data, prior=tmp_path / "base").n == 40
    state(tmp_path / "base")
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    for prior in (tmp_path / "base", loaded):
        with pytest.raises(ValueError, match="is a checkpoint of a training"):
            certified(model, data, prior=prior)
    vouched = CertificateConfig(**{**QUICK.to_dict(), "assume_independent": True})
    assert any("as you say" in note for note in certified(model, data, vouched, prior=loaded).notes)
