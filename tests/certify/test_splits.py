"""The examples that trained a prior are kept apart from those it certifies."""

from __future__ import annotations

import copy
from typing import Any

import datasets
import pytest
import saved_models
import torch
from certificates import Head, batches, certified, problem, trained
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertForSequenceClassification

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


def _table(count: int = 60) -> Any:
    draws = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        tokens = torch.randint(4, 16, (6 + i % 3,), generator=draws).tolist()
        label = int(torch.randint(0, 2, (), generator=draws))
        rows.append({"text": f"row {i}", "idx": i, "input_ids": tokens, "label": label})
    return datasets.Dataset.from_list(rows)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> BertForSequenceClassification:
    torch.manual_seed(0)
    folder = saved_models.bert(tmp_path_factory.mktemp("bert") / "model")
    return BertForSequenceClassification.from_pretrained(folder).eval()


def _drops(rows: list[Any]) -> dict[str, torch.Tensor]:
    """A collator that drops columns, and the ends of texts."""
    ids = torch.tensor([row["input_ids"][:6] for row in rows])
    return {"input_ids": ids, "labels": torch.tensor([row["label"] for row in rows])}


@pytest.mark.parametrize("collate_fn", [None, _drops])
def test_the_priors_own_examples_are_known_whatever_their_columns(bert: Any, collate_fn: Any) -> None:
    held_out = train_prior(bert, _table(), lambda model, data: None)
    for data in (held_out.prior_data, _table()):
        with pytest.raises(ValueError, match="The prior was trained on 30 of these examples"):
            certified(held_out.model, data, prior=held_out, collate_fn=collate_fn)
    result = certified(held_out.model, held_out.certificate_data, prior=held_out, collate_fn=collate_fn)
    assert (result.n, result.notes) == (30, ())
    if collate_fn is not None:
        loaders = [
            DataLoader(part, 4, collate_fn=collate_fn) for part in (held_out.prior_data, held_out.certificate_data)
        ]
        with pytest.raises(ValueError, match="The prior was trained on 30 of these examples"):
            certified(held_out.model, loaders[0], prior=held_out)
        assert certified(held_out.model, loaders[1], prior=held_out).n == 30


def test_texts_that_a_collator_makes_tokens_of(bert: Any) -> None:
    table = _table().remove_columns("input_ids")

    def tokens(rows: list[Any]) -> dict[str, torch.Tensor]:
        ids = [[4 + ord(letter) % 12 for letter in row["text"].ljust(7)[-4:]] for row in rows]
        return {"input_ids": torch.tensor(ids), "labels": torch.tensor([row["label"] for row in rows])}

    held_out = train_prior(bert, table, lambda model, data: None)
    with pytest.raises(ValueError, match=r"The prior was trained on \d+ of these examples"):
        certified(held_out.model, held_out.prior_data, prior=held_out, collate_fn=tokens)
    assert certified(held_out.model, held_out.certificate_data, prior=held_out, collate_fn=tokens).n == 30
    # batches that were made outside: nobody can tell from which rows
    made = [tokens([part[i] for i in range(k, k + 5)]) for part in (held_out.prior_data,) for k in range(0, 30, 5)]
    with pytest.raises(ValueError, match=r"None of the 30 examples is in one of the two parts.*the same language"):
        certified(held_out.model, made, prior=held_out)
    vouched = CertificateConfig(eta=300.0, draws=20, assume_independent=True)
    result = certified(held_out.model, made, vouched, prior=held_out)
    assert any("30 of the 30 examples are in neither part of the prior's split" in note for note in result.notes)


def test_a_seed_is_checked_and_a_split_is_printed_in_a_line() -> None:
    wrong: list[tuple[Any, str]] = [(2**64, "less than"), (-1, "got -1"), (1.0, "got 1.0"), (True, "got True")]
    for seed, what in wrong:
        with pytest.raises(ValueError, match=rf"seed must be an integer of at least 0.*{what}"):
            train_prior(nn.Linear(1, 1), [1, 2, 3, 4], lambda *_: None, seed=seed)
    held_out = train_prior(nn.Linear(1, 1), [1, 2, 3, 4], lambda *_: None)
    assert repr(held_out) == "HeldOutPrior(Linear, 2 for the prior, 2 for the certificate)"


def test_a_model_is_as_trained_until_anything_moves() -> None:
    model, _, _ = problem()
    held_out = train_prior(model, [1, 2, 3, 4], lambda *_: None)
    assert held_out.is_as_trained(held_out.model) and not held_out.is_as_trained(copy.deepcopy(model).double())
    assert not held_out.is_as_trained(nn.Linear(1, 1))
    with torch.no_grad():
        next(held_out.model.parameters())[0, 0] += 1e-6
    assert not held_out.is_as_trained(held_out.model)
