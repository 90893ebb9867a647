"""Examples as batches: what is stacked, padded, counted, cut and left out."""

from __future__ import annotations

from typing import Any

import datasets
import numpy
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from hf_pacgen.data.collation import _model_columns, collate

MODEL = tiny.make("bert")
T = torch.tensor


def test_ragged_sequences_are_padded_as_the_model_expects() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "token_type_ids": [0, 1, 1], "labels": [1, 2, 0]},
        {"input_ids": [8], "token_type_ids": [1], "labels": [2]},
    ]
    model = tiny.bert(pad_token_id=9)
    batch = collate(rows, model)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["labels"].tolist() == [[1, 2, 0], [2, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 1], [1, 0, 0]]
    assert rows[1] == {"input_ids": [8], "token_type_ids": [1], "labels": [2]}  # the examples stay as they were


@pytest.mark.parametrize("kind", [list, numpy.array, torch.tensor], ids=["lists", "arrays", "tensors"])
def test_a_padded_batch_has_the_loss_of_its_examples(kind: Any) -> None:
    """Against each example by itself: padding changes nothing."""
    rows = [{"input_ids": kind(ids), "label": label} for ids, label in (([3, 4, 5, 6], 0), ([7, 8], 2), ([9, 1, 2], 1))]
    alone = [MODEL(input_ids=T([list(map(int, r["input_ids"]))]), labels=T([r["label"]])).loss for r in rows]
    together = MODEL(**collate(rows, MODEL)).loss
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-10, atol=0)


def test_a_mask_that_is_there_is_padded_and_not_made_anew() -> None:
    rows = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 0]}, {"input_ids": [8], "attention_mask": [1]}]
    assert collate(rows, MODEL)["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0]]


def test_equal_lengths_need_no_mask_and_other_examples_are_stacked() -> None:
    assert "attention_mask" not in collate([{"input_ids": [5, 6]}, {"input_ids": [7, 8]}], MODEL)
    pairs = [(torch.zeros(2), 1), (torch.ones(2), 0)]
    x, y = collate(pairs, MODEL)
    assert x.tolist() == [[0, 0], [1, 1]] and y.tolist() == [1, 0]
    floats = collate([{"x": [0.5, 1.5], "label": 1}, {"x": [2.5, 3.5], "label": 0}], MODEL)
    assert floats["x"].dtype == torch.float32 and floats["labels"].tolist() == [1, 0]


def test_ragged_floats_are_not_padded() -> None:
    with pytest.raises(ValueError, match="expected sequence of length 2"):  # in torch's own words
        collate([{"x": [0.5, 1.5]}, {"x": [2.5]}], MODEL)


def columns(*names: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({name: [1] for name in names})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (("input_ids", "text", "label"), ["input_ids", "label"]),
        (("input_ids", "labels"), ["input_ids", "labels"]),
        (("id", "token_type_ids", "attention_mask"), ["token_type_ids", "attention_mask"]),
    ],
)
def test_columns_that_are_no_inputs_are_left_out(given: tuple[str, ...], kept: list[str]) -> None:
    assert _model_columns(columns(*given), MODEL).column_names == kept
    streamed = _model_columns(columns(*given).to_iterable_dataset(), MODEL)
    assert list(next(iter(streamed))) == kept


def test_an_adapter_has_the_columns_of_its_model() -> None:
    adapted = get_peft_model(tiny.make("bert"), LoraConfig(r=2, target_modules=["query"]))  # type: ignore[arg-type]
    assert _model_columns(columns("input_ids", "text", "labels"), adapted).column_names == ["input_ids", "labels"]


def test_a_model_that_takes_anything_is_refused_what_it_does_not_name() -> None:
    class Anything(torch.nn.Module):
        def forward(self, x: Tensor, **others: Tensor) -> Tensor:
            return x

    assert _model_columns(columns("x", "others"), Anything()).column_names == ["x"]
    with pytest.raises(ValueError, match=r"None of the dataset's columns \['text', 'label'\] is an input of Anything"):
        _model_columns(columns("text", "label"), Anything())
