"""Predictions averaged over noise are promised as those of any model."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
import torch
from kinds_of_models import KINDS, of
from promised import head, held_out, promised

from hf_pacgen import perturbed
from hf_pacgen.errors import InputError
from hf_pacgen.maths.held_out_bounds import exact_error_bound
from hf_pacgen.promises import NoisyModel, SelectiveClassifier


def test_it_averages_probabilities_over_draws() -> None:
    model, (batch,) = head(), held_out(40, 1)
    before = model.linear.weight.detach().clone()
    noisy = NoisyModel(model, 0.5, draws=3, seed=7)
    found = noisy(**batch)["logits"].softmax(-1)
    each = []
    for seed in (7, 8, 9):
        with perturbed(model, 0.5, distribution="normal", seed=seed), torch.no_grad():
            each.append(model(batch["features"])["logits"].double().softmax(-1))
    assert torch.allclose(found, torch.stack(each).mean(0), atol=1e-6)
    assert torch.equal(noisy(**batch)["logits"], noisy(**batch)["logits"]) and torch.equal(model.linear.weight, before)
    plain = NoisyModel(model, 0.0, draws=2)(**batch)["logits"].softmax(-1)
    assert torch.allclose(plain, model(batch["features"])["logits"].softmax(-1).double(), atol=1e-6)


def test_its_threshold_is_promised_and_applied() -> None:
    data = held_out(400, 2, 50)
    noisy = NoisyModel(head(), 0.5, draws=4)
    promise = promised(noisy, data, max_error=0.15, training_data=held_out(200, 9, 50))
    found = torch.cat([SelectiveClassifier(noisy, promise)(features=batch["features"]) for batch in data])
    assert int((found != -1).sum()) == promise.answered
    wrong = torch.cat([noisy(**batch)["logits"].argmax(-1) != batch["labels"] for batch in data])
    assert promise.error_bound == exact_error_bound(int(wrong.sum()), 400, promise.share)
    for other in (NoisyModel(head(), 0.4, draws=4), NoisyModel(head(), 0.5, draws=4, seed=1), head()):
        with pytest.raises(InputError, match=r"The promise is of other weights"):
            SelectiveClassifier(other, promise)
    SelectiveClassifier(NoisyModel(head(), 0.5, draws=4), promise)


def test_columns_are_those_of_the_model_inside() -> None:
    model: Any = of("BertForSequenceClassification", num_labels=3)()
    table = datasets.Dataset.from_dict({"idx": [0, 1], "input_ids": [[3, 4, 5], [6, 7]], "label": [0, 1]})
    noisy = NoisyModel(model, 0.01, draws=2)
    assert promised(noisy, table, training_data=[{"input_ids": torch.tensor([[8, 9]])}]).num_examples == 2
    with pytest.raises(ValueError, match=r"2 of the 2 held-out examples also stand in the training data"):
        promised(noisy, table, training_data=table)


def test_a_seed_is_one_of_64_bits() -> None:
    with pytest.raises(ValueError, match=r"seed must be .* less than 2\*\*64"):
        NoisyModel(head(), 0.1, seed=2**64)


def test_models_without_classes_are_refused() -> None:
    kind = KINDS["RoBERTa, tokens"]
    batch = {name: value[None] for name, value in kind.rows()[0].items()}
    with pytest.raises(ValueError, match=r"expected a model with logits \(examples, classes\) among its outputs"):
        NoisyModel(kind.make(), 0.01)(**batch)
    with pytest.raises(ValueError, match=r"draws must be an integer of at least 1; got 0"):
        NoisyModel(head(), 0.01, draws=0)
