"""A folder has the weights that a result knows, or it has not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import saved_models
import torch
from transformers import AutoModelForSequenceClassification

from hf_pacgen.command_line.inputs.weights import folder_fingerprint, is_of
from hf_pacgen.errors import InputError
from hf_pacgen.model.fingerprint import adapter_fingerprint


def test_a_model_and_the_checkpoint_of_a_run(tmp_path: Path) -> None:
    model = saved_models.bert(tmp_path / "model")
    known: dict[str, Any] = {"name": "elsewhere/checkpoint-5", "weights": folder_fingerprint(model), "dtype": "float32"}
    assert is_of(model, known) == (True, known["weights"])
    other = saved_models.bert(tmp_path / "run" / "checkpoint-10", num_labels=3)
    assert not is_of(other, known)[0] and not is_of(tmp_path / "run", known)[0]
    shutil.copytree(model, tmp_path / "run" / "checkpoint-5")
    assert is_of(tmp_path / "run", known)[0]
    # by another name the last is meant
    assert not is_of(tmp_path / "run", known | {"name": "model"})[0]
    with pytest.raises(InputError, match=r"has no config\.json"):
        is_of(tmp_path, known)


def test_an_adapter_by_its_own_weights(tmp_path: Path) -> None:
    base = saved_models.bert(tmp_path / "base")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
    model: Any = peft.get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), config)
    model.save_pretrained(tmp_path / "adapter")
    known = {"name": "x", "weights": "of another device", "adapter": adapter_fingerprint(model)}
    assert is_of(tmp_path / "adapter", known)[0]
    assert is_of(base, known) == (False, "")
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_A" in n).add_(1)
    assert not is_of(tmp_path / "adapter", known | {"adapter": adapter_fingerprint(model)})[0]
    assert adapter_fingerprint(AutoModelForSequenceClassification.from_pretrained(base)) is None
