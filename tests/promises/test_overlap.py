"""Held-out examples that the model has seen are found by their inputs, however these come."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
import tiny
import torch
import transformers as t
from kinds_of_models import of
from promised import promised
from torch import Tensor

from hf_pacgen.promises.overlap import check_copies, check_overlap, input_fingerprints

TOKENS = [[2, 3, 4], [5, 6], [7, 8, 9, 10], [3, 3, 3, 3, 3]]


def model() -> Any:
    return of("BertForSequenceClassification", vocab_size=12, num_labels=3)()


def padded(rows: list[list[int]], width: int, *, left: bool = False, mask: bool = True) -> dict[str, Tensor]:
    def filled(row: list[int], fill: int) -> list[int]:
        more = [fill] * (width - len(row))
        return more + row if left else row + more

    batch = {"input_ids": torch.tensor([filled(row, 0) for row in rows])}
    if mask:
        batch["attention_mask"] = torch.tensor([filled([1] * len(row), 0) for row in rows])
    return batch


def test_padding_order_and_labels_do_not_matter() -> None:
    plain = input_fingerprints(model(), padded(TOKENS, 5))
    assert len(set(plain)) == 4
    labeled = {
        "labels": torch.tensor([0, 1, 2, 0]),
        **padded(TOKENS, 9, left=True),
        "token_type_ids": torch.zeros(4, 9),
    }
    assert input_fingerprints(model(), labeled) == plain
    assert input_fingerprints(model(), padded(TOKENS, 7, mask=False)) == plain  # the padding token tells
    assert input_fingerprints(model(), {**labeled, "idx": torch.arange(4)}) == plain  # no input of the model
    assert input_fingerprints(model(), padded([[2, 3, 5]], 5))[0] not in plain


def test_seen_examples_are_refused_with_their_number() -> None:
    labels = [0, 1, 2, 1]
    held = datasets.Dataset.from_dict({"input_ids": TOKENS, "label": labels})
    rows = [[1, 1], *TOKENS[1:3], [4, 4, 4]]
    training = datasets.Dataset.from_dict(
        {"idx": range(4), "label": [2, 2, 2, 2], "text": ["a"] * 4, "input_ids": rows}
    )
    with pytest.raises(
        ValueError, match=r"2 of the 4 held-out examples also stand in the training data \(equal inputs\)"
    ):
        promised(model(), held, training_data=training)
    other = datasets.Dataset.from_dict({"input_ids": [[1, 2], [9, 9]], "label": [0, 1]})
    result = promised(model(), held, training_data=other)
    assert not any("was not looked at" in note for note in result.notes)
    assert any("was not looked at: give training_data" in note for note in promised(model(), held).notes)
    raw = datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
    with pytest.raises(ValueError, match=r"None of the dataset's columns .* Tokenize or process the dataset first"):
        promised(model(), held, training_data=raw)


def test_masked_tokens_are_compared_as_they_were() -> None:
    masking: Any = of("BertForMaskedLM", vocab_size=12)()
    tokens = torch.tensor([[2, 3, 4, 5], [6, 7, 8, 9]])

    def masked(places: Tensor) -> dict[str, Tensor]:
        return {"input_ids": tokens.masked_fill(places, 11), "labels": tokens.masked_fill(~places, -100)}

    one = masked(torch.tensor([[True, False, False, False], [False, False, True, True]]))
    two = masked(torch.tensor([[False, True, True, False], [True, False, False, False]]))
    assert input_fingerprints(masking, one) == input_fingerprints(masking, two)
    with pytest.raises(ValueError, match="2 of the 2 held-out examples also stand in the training data"):
        promised(masking, [one], training_data=[two])


def test_pictures_and_what_decoders_get() -> None:
    batch = tiny.examples("vit", 4, dtype=torch.float32)
    found = input_fingerprints(tiny.make("vit"), batch)
    assert (
        found == input_fingerprints(tiny.make("vit"), {"labels": batch["labels"] + 1, **batch}) and len(set(found)) == 4
    )
    t5: Any = of("T5ForConditionalGeneration", {"vocab_size": 12, "d_model": 8, "num_layers": 1}, pad_token_id=0)()
    assert isinstance(t5, t.T5ForConditionalGeneration)
    tokens = torch.tensor([[2, 3], [4, 5]])
    assert input_fingerprints(t5, {"input_ids": tokens, "decoder_input_ids": tokens}) == input_fingerprints(
        t5, {"input_ids": tokens, "labels": tokens}
    )


def test_a_few_equal_examples_may_be_draws() -> None:
    prints = [bytes([i]) for i in range(98)]
    assert check_copies(prints, assume_independent=False) is None
    said = check_copies([*prints, prints[0]], assume_independent=False)
    assert said == "1 of the held-out examples equal an earlier one; they count as drawn independently."
    with pytest.raises(ValueError, match=r"6 of the 104 held-out examples equal an earlier one"):
        check_copies([*prints, *prints[:6]], assume_independent=False)
    assert check_copies([*prints, *prints[:6]], assume_independent=True) is not None


def test_a_few_that_a_random_split_has_in_both_parts() -> None:
    prints = [bytes([i]) for i in range(100)]
    with pytest.raises(ValueError, match=r"5 of the 100 held-out .* equal by nature, pass assume_independent=True"):
        check_overlap(prints, prints[:5], assume_independent=False)
    said = check_overlap(prints, prints[:5], assume_independent=True)
    assert said is not None and said.startswith("5 of the 100 held-out") and said.endswith("drawn independently.")
    for vouched in (True, False):  # more than that are no accident, and nobody can vouch for them
        with pytest.raises(ValueError, match=r"6 of the 100 .* that the training data does not have\.$"):
            check_overlap(prints, prints[:6], assume_independent=vouched)
    assert check_overlap(prints, [b"other"], assume_independent=False) is None
