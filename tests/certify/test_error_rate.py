"""One error in [0, 1] for every independent example."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from certificates import QUICK, certified, documents
from torch.nn import functional


@pytest.mark.parametrize(
    ("errors", "match"),
    [
        (lambda n: torch.full((n,), 2.0), r"must return errors in \[0, 1\]; batch 0 has 2"),
        (lambda n: torch.full((n,), -0.1), r"must return errors in \[0, 1\]; batch 0 has -0.1"),
        (lambda n: torch.full((n,), math.nan), r"must return errors in \[0, 1\]; batch 0 has nan"),
        (lambda n: torch.zeros(()), r"expected shape \(8,\) for batch 0, got \(\)"),
        (lambda n: torch.zeros(n * 4), r"expected shape \(8,\) for batch 0, got \(32,\). Tokens of a document depend"),
        (lambda n: 0.5, "must return a tensor with one error for each example; got float"),
    ],
)
def test_errors_must_be_one_for_each_example_in_0_1(solved, errors, match):
    with pytest.raises(ValueError, match=match):
        certified(*solved, error_fn=lambda model, batch: errors(len(batch["labels"])))


def test_errors_come_from_a_function(solved):
    with pytest.raises(TypeError, match=r"error_fn must be a function error_fn\(model, batch\).*got float"):
        certified(*solved, error_fn=0.5)


def test_errors_that_cannot_be_defined(solved):
    model, data = solved

    def loss_fn(model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        return functional.mse_loss(model.linear(batch["features"]), batch["labels"], reduction="sum"), 8

    targets = [{**batch, "labels": torch.randn(8, 2)} for batch in data]
    with pytest.raises(ValueError, match=r"Batch 0 has no 0-1 error: expected logits .* got \(8, 2\) and \(8, 2\)"):
        certified(
            model,
            [{**b, "labels": b["labels"]} for b in targets],
            loss_fn=lambda m, b: (m(b["features"])["logits"].sum(), 8),
            error_fn=None,
        )
    pairs = [(batch["features"], batch["labels"]) for batch in data]
    with pytest.raises(ValueError, match="needs batches that are dicts with labels; got tuple"):
        certified(
            model, pairs, loss_fn=lambda m, b: (functional.cross_entropy(m.linear(b[0]), b[1], reduction="sum"), 8)
        )
    ignored = [{**batch, "labels": batch["labels"].clone()} for batch in data]
    ignored[3]["labels"][2] = -100
    with pytest.raises(ValueError, match="Batch 3 has an example without a label"):
        certified(model, ignored)


def test_the_units_of_a_language_model_are_documents(language_model):
    data = documents()
    result = certified(language_model, data, dataclasses.replace(QUICK, eta=1e9))
    assert (result.n, result.unit) == (24, "document")
    assert "nothing is proved" in result.sentence
    assert "of the labels of a new one" in dataclasses.replace(result, status="certified", bound=0.5).sentence
    tokens = torch.cat([batch["input_ids"] for batch in data])
    wrong = (language_model(tokens).logits[:, :-1].argmax(-1) != tokens[:, 1:]).double().mean()
    assert result.empirical_error == pytest.approx(wrong.item(), abs=0.02)  # hardly any noise at that η

    packed = [{**data[0], "position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]] * 4)}, *data[1:]]
    ended = [{k: v.clone() for k, v in batch.items()} for batch in data]
    ended[2]["input_ids"][1, 4] = language_model.config.eos_token_id
    for rows in (packed, ended):
        with pytest.raises(ValueError, match="rows of several documents"):
            certified(language_model, rows)
    ended[2]["input_ids"][1] = torch.tensor([0, 0, 5, 6, 7, 8, 0, 0, 0])  # at both ends is where it belongs
    assert certified(language_model, ended).n == 24
    assert certified(language_model, packed, dataclasses.replace(QUICK, assume_independent=True)).n == 24
    with pytest.raises(ValueError, match=r"expected shape \(4,\) for batch 0, got \(32,\). Tokens of a document"):
        certified(language_model, data, error_fn=lambda m, b: torch.zeros(b["labels"][:, 1:].numel()))


def test_a_document_counts_once_whatever_its_length(language_model):
    """Errors are averaged over documents, not over their tokens."""
    data = documents()
    for batch in data:
        batch["labels"][0, 2:] = -100
    result = certified(language_model, data, dataclasses.replace(QUICK, eta=1e9))
    errors = []
    for batch in data:
        logits = language_model(batch["input_ids"]).logits[:, :-1].argmax(-1)
        labels = batch["labels"][:, 1:]
        errors += [(a[b != -100] != b[b != -100]).double().mean().item() for a, b in zip(logits, labels, strict=True)]
    assert result.empirical_error == pytest.approx(sum(errors) / 24, abs=0.03)
