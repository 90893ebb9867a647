"""What a batch holds: counted, taken apart and cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BatchEncoding
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_pacgen.data.contents import batch_tensors, count_examples, documents, labels_of, take, truncate

T = torch.tensor
# as image processors make them for detection: the first has no box at all
BOXES = [
    {"class_labels": torch.zeros(n, dtype=torch.long), "boxes": torch.zeros(n, 4), "size": T([8, 8])} for n in (0, 3)
]


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.zeros(3, 2), 3),
        ({"x": torch.zeros(7, 5), "labels": torch.zeros(4)}, 4),  # labels come first
        ({"x": torch.zeros(7), "label_ids": torch.zeros(5)}, 5),
        ({"scale": torch.tensor(2.0), "x": torch.zeros(6, 1)}, 6),  # a number is no example
        ((torch.tensor(1.0), [torch.zeros(2, 9)]), 2),
        ({"outer": {"inner": torch.zeros(8)}, "name": "text"}, 8),
        (BatchEncoding({"input_ids": torch.zeros(3, 4)}), 3),
        (SequenceClassifierOutput(logits=torch.zeros(2, 3)), 2),
        ({"pixel_values": torch.zeros(2, 3, 8, 8), "labels": BOXES}, 2),
        ({"mask_labels": [torch.zeros(5, 8, 8)] * 2, "pixel_values": torch.zeros(2, 3, 8, 8)}, 2),
        ({"position_ids": T([[0, 1, 2, 0, 1]]), "labels": torch.zeros(1, 5)}, 2),  # two documents in a row
        ({"position_ids": T([[0, 1, 2, 0, 1]]), "attention_mask": torch.ones(1, 5), "labels": torch.zeros(1, 5)}, 1),
    ],
)
def test_examples_are_counted_by_labels_or_the_first_tensor(batch: Any, count: int) -> None:
    assert count_examples(batch) == count


@pytest.mark.parametrize("batch", [[], {}, {"x": torch.tensor(1.0)}, "text", None])
def test_a_batch_that_does_not_tell_its_size(batch: Any) -> None:
    kind = type(batch).__name__
    with pytest.raises(ValueError, match=f"how many examples a batch of type {kind} has: expected a dict or a seq"):
        count_examples(batch)


def test_tensors_come_labels_first_and_all_of_them() -> None:
    x, y, z = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    found = list(batch_tensors({"x": x, "more": [z, ("text", 3)], "labels": y}))
    assert [tensor.item() for tensor in found] == [1, 0, 2, 1]  # labels once more in their place


def test_a_cut_batch_keeps_its_form() -> None:
    mask = torch.arange(9).view(3, 3)
    batch = {"x": mask, "y": (torch.arange(3), [torch.arange(2)]), "temperature": torch.tensor(0.5), "name": "text"}
    cut = truncate(batch, 2, 3)
    assert cut["x"].equal(mask[:2]) and cut["y"][0].tolist() == [0, 1] and isinstance(cut["y"], tuple)
    assert cut["y"][1][0].tolist() == [0, 1]  # of another length than the batch: no example's
    assert cut["temperature"].item() == 0.5 and cut["name"] == "text"


def test_nested_labels_are_taken_by_example() -> None:
    batch = {
        "pixel_values": torch.arange(2.0).view(2, 1),
        "labels": BOXES,
        "mask_labels": [torch.ones(2), torch.ones(3)],
    }
    last = take(batch, [1])
    assert (
        last["labels"] == [BOXES[1]] and last["pixel_values"].tolist() == [[1.0]] and len(last["mask_labels"][0]) == 3
    )
    assert truncate(batch, 1, 2)["labels"] == [BOXES[0]]


def test_a_row_of_documents_is_cut_between_them() -> None:
    row = T([[0, 1, 2, 0, 1, 0]])
    batch = {"position_ids": row, "input_ids": row + 5, "cu_seq_lens_q": T([0, 3, 5, 6]), "max_length_q": 3}
    assert documents(batch) == [0, 3, 5]
    cut = truncate(batch, 2, 3)
    assert cut["input_ids"].tolist() == [[5, 6, 7, 5, 6]] and cut["cu_seq_lens_q"].tolist() == [0, 3, 5]
    assert cut["max_length_q"] == 3 and truncate(batch | {"max_length_q": T(3)}, 2, 3)["max_length_q"].item() == 3
    assert documents({"position_ids": T([[0, 1, 2]])}) is None and documents({"position_ids": T([0, 0])}) is None


def test_labels_have_one_of_several_names() -> None:
    assert labels_of({"label": 1, "labels": 2}) == 2 and labels_of({"tags": 3}, ("tags",)) == 3
    assert labels_of({"labels": None}) is None and labels_of([1]) is None
