"""Results know the weights, the data and the versions they are of."""

from __future__ import annotations

from pathlib import Path

import datasets
import tiny
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from hf_pacgen import PACGenResult, ScoreConfig, expected_sharpness, pacgen
from hf_pacgen.measures.origin import origin_of, with_origin
from hf_pacgen.model.fingerprint import weights_fingerprint


def test_a_result_is_of_the_weights_that_were_saved(tmp_path: Path) -> None:
    model = tiny.make("bert", dtype=torch.float32)
    batch = tiny.examples("bert", 4)
    data = datasets.Dataset.from_dict({key: value.tolist() for key, value in batch.items()}, split="train[:4]")
    result = pacgen(model, data, config=ScoreConfig(lipschitz_directions=0), progress=False)
    result.save(tmp_path / "r.json")
    origin = PACGenResult.load(tmp_path / "r.json").origin
    assert origin == result.origin and origin["model"]["dtype"] == "float32"
    model.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert origin["model"]["weights"] == weights_fingerprint(loaded)
    assert origin["data"] == {"split": "train[:4]", "fingerprint": data._fingerprint, "rows": 4} | {
        key: value for key, value in origin["data"].items() if key in ("name", "config")
    }
    assert origin["versions"]["torch"] == str(torch.__version__) and "hf_pacgen" in origin["versions"]
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    other = expected_sharpness(model, [batch], noise_scale=0.1, progress=False)
    assert other.origin["model"]["weights"] != origin["model"]["weights"] and other.origin["data"] == {}


def test_what_is_no_result_stays_as_it_is() -> None:
    assert with_origin(0.5, nn.Linear(1, 1), None) == 0.5
    assert origin_of(nn.Linear(1, 1), [])["model"]["name"] == "Linear"
