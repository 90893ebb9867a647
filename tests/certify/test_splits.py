"""The examples that trained a prior are kept apart from those it certifies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from certificates import Head, batches, certified, problem, trained
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from hf_pacgen.certify.splits import fingerprint, train_prior
from hf_pacgen.config import CertificateConfig


def test_a_prior_trained_on_a_part_certifies_the_other():
    _, features, labels = problem(n=600)
    dataset = TensorDataset(features, labels)

    def loss_fn(model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        return functional.cross_entropy(model.linear(batch[0]), batch[1], reduction="sum"), len(batch[1])

    def error_fn(model: Any, batch: Any) -> torch.Tensor:
        return (model.linear(batch[0]).argmax(-1) != batch[1]).double()

    def train(model: nn.Module, data: Any) -> None:
        rows = [data[i] for i in range(len(data))]
        trained(model, torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows]))  # type: ignore[arg-type]

    torch.manual_seed(0)
    untrained = Head()
    before = copy.deepcopy(untrained.state_dict())
    held_out = train_prior(untrained, dataset, train, prior_data_fraction=0.5)
    assert all(torch.equal(value, before[name]) for name, value in untrained.state_dict().items())
    assert len(held_out.prior_data) == len(held_out.certificate_data) == 300
    kinds: dict[str, Any] = {"loss_fn": loss_fn, "error_fn": error_fn}
    many = CertificateConfig(draws=2000)
    result = certified(held_out.model, held_out.certificate_data, many, prior=held_out, **kinds)
    assert result.n == 300 and "300 examples held out" in result.prior and result.kl < 1
    assert result.bound < certified(held_out.model, dataset, many, **kinds).bound - 0.02
    for data in (dataset, held_out.prior_data, DataLoader(held_out.prior_data, batch_size=4)):
        with pytest.raises(ValueError, match="The prior was trained on 300 of these examples"):
            certified(held_out.model, data, prior=held_out, **kinds)
    certified(held_out.model, DataLoader(held_out.certificate_data, batch_size=8), prior=held_out, **kinds)


def test_splitting_lists_of_batches_and_equal_examples():
    model, features, labels = problem(n=80)
    data = batches(features, labels)
    held_out = train_prior(model, data, lambda model, data: None, prior_data_fraction=0.25, seed=1)
    assert (len(held_out.prior_data), len(held_out.certificate_data)) == (2, 8)  # 10 batches: 2.5 rounds to even
    assert certified(model, held_out.certificate_data, prior=held_out).n == 64
    with pytest.raises(ValueError, match="trained on 16 of these examples"):
        certified(model, data, prior=held_out)
    # an example that is in both parts may be certified on, once
    twice = TensorDataset(torch.cat([features, features]), torch.cat([labels, labels]))
    both = train_prior(model, twice, lambda model, data: None)
    prints = [fingerprint(both.certificate_data[i]) for i in range(80)]
    assert both.count_used(prints) == 0 and both.count_used([*prints, prints[0]]) <= 1
    assert both.count_used(fingerprint(twice[i]) for i in range(160)) > 0


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"prior_data_fraction": 1.0}, ValueError, r"prior_data_fraction must be in \(0, 1\).*got 1.0"),
        ({"data": [1], "prior_data_fraction": 0.5}, ValueError, "leaves one part empty"),
        ({"data": iter([1, 2])}, TypeError, "data must be a dataset with indices.*got list_iterator"),
        ({"data": DataLoader(TensorDataset(torch.ones(2)))}, TypeError, "got DataLoader. Split the dataset"),
    ],
)
def test_splits_refuse(arguments, error, match):
    with pytest.raises(error, match=match):
        train_prior(nn.Linear(1, 1), **{"data": [1, 2, 3, 4], "train": lambda *_: None, **arguments})


def test_fingerprints_see_content_only():
    row = {"label": 1, "input_ids": [5, 6, 7], "unused": None}
    padded = {
        "input_ids": torch.tensor([5, 6, 7, 0]),
        "attention_mask": torch.tensor([1, 1, 1, 0]),
        "token_type_ids": torch.zeros(4, dtype=torch.long),
        "labels": torch.tensor(1),
    }
    assert fingerprint(row) == fingerprint(padded)
    for other in ({**row, "label": 0}, {**row, "input_ids": [5, 6]}, {**row, "text": "more"}):
        assert fingerprint(other) != fingerprint(row)
    assert fingerprint((torch.tensor([0.1]), 1)) == fingerprint({"x": [0.1], "y": 1})
