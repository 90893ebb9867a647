"""What would make a certificate invalid is refused."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import saved_models
import torch
from certificates import QUICK, Head, certified, documents
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler
from transformers import AutoModelForSequenceClassification


class Normalized(Head):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5, **settings)

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return super().forward(self.norm(features), labels)


def test_batch_norm(solved):
    _, data = solved
    with pytest.raises(ValueError, match="The batch-norm 'norm' is in train mode"):
        certified(Normalized(), data)
    with pytest.raises(ValueError, match="The batch-norm 'norm' is without running statistics"):
        certified(Normalized(track_running_stats=False).eval(), data)
    model = Normalized()
    initial = copy.deepcopy(model)
    model(data[0]["features"])
    with pytest.raises(
        ValueError, match=r"The statistics \(a buffer\) 'norm.running_mean' are not certified, and differ"
    ):
        certified(model.eval(), data, prior=initial)
    with pytest.warns(UserWarning, match="does not hold the batch-norm statistics of 'norm'"):
        certified(model.eval(), data)


def test_examples_must_be_independent(solved):
    model, data = solved
    with pytest.raises(ValueError, match="400 of the 800 examples equal an earlier one"):
        certified(model, [*data, *data])
    few = certified(model, [*data, data[0]])
    assert few.n == 408 and few.notes == ("8 of the examples equal an earlier one; they count as drawn independently.",)
    vouched = dataclasses.replace(QUICK, assume_independent=True)
    assert certified(model, [*data, *data], vouched).n == 800
    rows: Any = [{"features": x, "labels": y} for batch in data for x, y in zip(*batch.values(), strict=True)]
    for sampler in (RandomSampler(rows, replacement=True), WeightedRandomSampler([1.0] * 400, 400)):
        with pytest.raises(ValueError, match="draws examples with replacement or by weights"):
            certified(model, DataLoader(rows, batch_size=8, sampler=sampler))
    assert certified(model, DataLoader(rows, batch_size=8, shuffle=True)).n == 400


def test_rows_of_one_length_may_be_pieces(language_model):
    model = copy.deepcopy(language_model)
    model.config.n_positions = 64
    model.transformer.wpe = nn.Embedding(64, 16)
    data = [{**batch, "attention_mask": torch.ones(4, 64)} for batch in documents(length=64)]
    with pytest.warns(UserWarning, match="All rows have exactly 64 tokens: if they are pieces of longer documents"):
        assert len(certified(model, data).notes) == 1
    data[0]["attention_mask"][0, -1] = 0
    assert certified(model, data).notes == ()


def test_parameters_must_exist(solved):
    model, data = solved
    with pytest.raises(
        ValueError, match=r"parameters='head' matches no trainable parameter; there are 'linear.weight'"
    ):
        certified(model, data, dataclasses.replace(QUICK, parameters=["linear", "head"]))
    with pytest.raises(ValueError, match="Head has no trainable parameters to certify"):
        certified(copy.deepcopy(model).requires_grad_(False), data)


def test_empty_batches_are_refused(solved):
    model, data = solved
    empty = {name: value[:0] for name, value in data[0].items()}
    for given, place in (([*data, empty], 50), ([empty, *data], 0)):
        with pytest.raises(ValueError, match=rf"Batch {place} of 51 has no examples: expected at least one"):
            certified(model, given)


def test_adapters_without_effect_are_refused(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    base = AutoModelForSequenceClassification.from_pretrained(saved_models.bert(tmp_path / "base"))
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=2)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    tokens = torch.randint(4, 16, (40, 6))
    data = [{"input_ids": tokens[i : i + 4], "labels": tokens[i : i + 4, 0] % 2} for i in range(0, 40, 4)]
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"which is merged into its weights: noise on 'lora_.*unmerge_adapter\(\)"):
        certified(model, data)
    # a head alone does not need the adapter to be felt
    head = dataclasses.replace(QUICK, parameters=["*classifier*"])
    assert certified(model, data, head).num_parameters < 100
    model.unmerge_adapter()
    result = certified(model, data)
    assert any("frozen tensors, such as" in note and "count as given" in note for note in result.notes)
    trained = [p for p in model.parameters() if p.requires_grad]
    model.base_model.disable_adapter_layers()
    for p in trained:  # which it freezes
        p.requires_grad_(True)
    with pytest.raises(ValueError, match=r"which is switched off: noise on 'lora_.*enable_adapter_layers\(\)"):
        certified(model, data)
