"""Where a model predicts, and what is refused because nothing can be averaged there."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from hf_pacgen.predictions.reading import PlaceReader


class Gives(nn.Module):
    """Outputs that are given."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor, labels: Any = None) -> Any:
        return self.outputs


X = torch.zeros(2, 4)


def read(model: nn.Module, batch: Any, index: int = 3) -> Any:
    with torch.no_grad():
        return PlaceReader(model).places(batch, index)


def test_examples_and_tokens_that_count() -> None:
    found = read(Gives({"logits": torch.eye(3)}), {"x": X, "labels": torch.tensor([2, -100, 0])})
    assert found.labels.tolist() == [2, 0] and found.rows.tolist() == [0, 2] and found.num_rows == 3
    assert found.unit == "example" and found.logits.tolist() == torch.eye(3)[[0, 2]].tolist()
    model, batch = tiny.make("llama"), tiny.examples("llama", 2)
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][0, 2] = -100
    found = read(model, batch)
    assert found.unit == "token" and found.rows.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert found.labels.tolist() == [*batch["input_ids"][0, [1, 3, 4]].tolist(), *batch["input_ids"][1, 1:].tolist()]
    # a tuple has its loss first
    found = read(Gives((torch.tensor(0.5), torch.zeros(2, 3))), {"x": X})
    assert found.labels is None and found.logits.shape == (2, 3)


def sequence(**changes: Any) -> nn.Module:
    config = BertConfig(**tiny.SIZES, vocab_size=12, max_position_embeddings=8, **changes)
    return BertForSequenceClassification(config).eval()


TEXT = {"input_ids": torch.ones(2, 4).long()}


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (Gives(None), [X], "Predictions need batches that are dicts of the model's inputs; got list"),
        (Gives({"loss": X}), {"x": X}, r"expected logits \(examples, classes\).*; got dict"),
        (Gives({"logits": torch.zeros(1, 2, 3, 4)}), {"x": X}, r"got \(1, 2, 3, 4\)"),
        (Gives({"logits": torch.zeros(2, 1)}), {"x": X}, "Gives is a regression model.*perturbed"),
        (sequence(num_labels=1), TEXT | {"labels": torch.ones(2)}, "BertForSequenceClassification is a regression"),
        (sequence(num_labels=3, problem_type="regression"), TEXT, "is a regression model"),
        (
            sequence(num_labels=3, problem_type="multi_label_classification"),
            TEXT | {"labels": torch.ones(2, 3)},
            "Batch 3 has several labels that hold or not: expected one class",
        ),
        (Gives({"logits": torch.zeros(2, 3)}), {"x": X, "labels": torch.ones(2)}, "labels of type torch.float32"),
        (Gives({"logits": torch.zeros(2, 3)}), {"x": X, "labels": [1, 2]}, "labels of type list: expected a tensor"),
        (Gives({"logits": torch.zeros(2, 3)}), {"x": X, "labels": torch.tensor([[1, 2]])}, "do not belong together"),
        (Gives({"logits": torch.zeros(2, 5, 3)}), {"x": X, "labels": torch.ones(2, 4).long()}, r"labels \(2, 4\)"),
        (Gives({"logits": torch.zeros(2, 3)}), {"x": X, "labels": torch.tensor([0, 3])}, "the classes 0 to 2"),
        (sequence(num_labels=3), TEXT | {"labels": torch.tensor([0, 7])}, "Batch 3 has the label 7"),
        (Gives({"logits": torch.full((2, 3), torch.nan)}), {"x": X}, "Batch 3 has logits that are not finite"),
        (
            BertForQuestionAnswering(BertConfig(**tiny.SIZES, vocab_size=12)),
            TEXT,
            "BertForQuestionAnswering predicts no classes that can be averaged",
        ),
    ],
)
def test_what_has_no_classes_is_refused(model: nn.Module, batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(model, batch)
