"""One example has one print, whatever it comes as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import saved_models
import torch
from certificates import Head
from transformers import BertForSequenceClassification, DataCollatorWithPadding

from hf_pacgen.certify.prints import batch_fingerprints, fingerprint, read_by
from hf_pacgen.data.collation import collate


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BertForSequenceClassification:
    return BertForSequenceClassification.from_pretrained(saved_models.bert(tmp_path_factory.mktemp("bert") / "model"))


ROWS: list[dict[str, Any]] = [
    {"text": "a b", "idx": 0, "input_ids": [5, 6], "label": 1},
    {"text": "a b c d", "idx": 1, "input_ids": [5, 6, 7, 8], "label": 0},
    {"text": "c", "idx": 2, "input_ids": [7], "label": 0},
]


def test_rows_and_batches_have_the_same_prints(model: BertForSequenceClassification) -> None:
    wanted = [fingerprint(row, model) for row in ROWS]
    assert len(set(wanted)) == 3
    assert list(batch_fingerprints(collate([dict(row) for row in ROWS], model), model)) == wanted
    pads = DataCollatorWithPadding(saved_models.tokenizer(), padding="max_length", max_length=9)
    cut = [{"input_ids": row["input_ids"], "label": row["label"]} for row in ROWS]
    assert list(batch_fingerprints(dict(pads(cut)), model)) == wanted
    # what the model does not read says nothing; what it reads does
    assert fingerprint({**ROWS[0], "idx": 9, "text": "z"}, model) == wanted[0]
    for other in ({"label": 0}, {"input_ids": [5, 7]}, {"input_ids": [6, 5]}):
        assert fingerprint({**ROWS[0], **other}, model) != wanted[0]


def test_without_known_inputs_everything_counts(model: BertForSequenceClassification) -> None:
    row = {"text": "a", "label": 1}
    assert read_by(row, model) == {"text": "a", "labels": 1}
    assert fingerprint(row, model) != fingerprint({**row, "text": "b"}, model)
    assert fingerprint((torch.tensor([0.1]), 1), Head()) == fingerprint({"features": [0.1], "labels": True}, Head())


def test_labels_of_tokens_are_padded_too(model: BertForSequenceClassification) -> None:
    row = {"input_ids": [5, 6], "labels": [-100, 3]}
    batch = {
        "input_ids": torch.tensor([[5, 6, 0]]),
        "attention_mask": torch.tensor([[1, 1, 0]]),
        "labels": torch.tensor([[-100, 3, -100]]),
    }
    assert list(batch_fingerprints(batch, model)) == [fingerprint(row, model)]
    assert fingerprint({"input_ids": [5, 6], "labels": [3, 3]}, model) != fingerprint(row, model)


def test_several_labels_as_flags_or_as_numbers(model: BertForSequenceClassification) -> None:
    row = {"input_ids": [5], "labels": [1, 0, 1]}
    batch = {"input_ids": torch.tensor([[5]]), "labels": torch.tensor([[1.0, 0.0, 1.0]])}
    assert list(batch_fingerprints(batch, model)) == [fingerprint(row, model)]


def test_labels_that_are_lists_count_one_for_each_example(tmp_path: Path) -> None:
    images = torch.rand(3, 1, 2, 2)
    labels = [{"boxes": torch.rand(n, 4), "class_labels": torch.zeros(n)} for n in (1, 2, 0)]
    prints = list(batch_fingerprints({"pixel_values": images, "labels": labels}))
    assert len(set(prints)) == 3
