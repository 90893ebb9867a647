"""One name for the same weights, in and out of a file; another for other weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_pacgen.model import fingerprint
from hf_pacgen.model.fingerprint import weights_fingerprint


@pytest.mark.parametrize(
    ("name", "kind"), [("bert", AutoModelForSequenceClassification), ("gpt2", AutoModelForCausalLM)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_same_in_and_out_of_a_file(name: str, kind: type, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny.make(name, dtype=dtype)  # GPT-2's embeddings are tied
    model.save_pretrained(tmp_path, max_shard_size="5KB")  # type: ignore[operator]
    before = weights_fingerprint(model)
    for loaded in (torch.float32, dtype):
        assert weights_fingerprint(kind.from_pretrained(tmp_path, dtype=loaded)) == before  # type: ignore[attr-defined]
    assert weights_fingerprint(torch.nn.DataParallel(model)) == before


def test_it_is_another_for_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = nn.Linear(3, 2), nn.Linear(2, 2)
    model = nn.Sequential(first, last)
    found = weights_fingerprint(model)
    monkeypatch.setattr(fingerprint, "CHUNK", 3)
    assert weights_fingerprint(model) == found  # however it is read
    for parameter in model.parameters():
        parameter.requires_grad = False
    assert weights_fingerprint(model.double()) == found
    with torch.no_grad():
        last.bias[1] = torch.nextafter(last.bias[1].float(), torch.tensor(9.0))
        assert weights_fingerprint(model) != found
        first.weight.copy_(torch.arange(6.0).view(2, 3))
        found = weights_fingerprint(model)
        first.weight[0, :2] = torch.tensor([1.0, 0.0])  # two have changed places
    assert weights_fingerprint(model) != found
    assert weights_fingerprint(nn.Linear(1, 1, device="meta")) is None
