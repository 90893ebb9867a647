"""One pass by a model in evaluation mode, which leaves everything as it was, on any number of processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from certificates import Head
from launch import on_two_processes
from promised import drawn, head, held_out, promised
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from hf_pacgen.promises.visit import left_out

COUNT = 100


def test_the_model_is_promised_without_dropout_and_left_as_it_was() -> None:
    class Dropping(Head):
        def forward(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            return super().forward(nn.functional.dropout(features, 0.5, self.training), labels)

    model = Dropping(3)
    model.load_state_dict(head().state_dict())
    model.train()
    data, plain = held_out(COUNT, 6), head()
    state = torch.get_rng_state()
    assert promised(model, data).error_bound == promised(plain, data).error_bound
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    for parameter in model.parameters():  # nothing to train, nothing to differentiate
        parameter.requires_grad_(False)
    assert promised(model, data).error_bound == promised(head(), data).error_bound


def test_loaders() -> None:
    features, labels = drawn(30, 7)
    rows: Any = TensorDataset(features, labels)

    def stacked(examples: Any) -> dict[str, Tensor]:
        return {"features": torch.stack([f for f, _ in examples]), "labels": torch.stack([y for _, y in examples])}

    plain = promised(head(), DataLoader(rows, batch_size=8, collate_fn=stacked))
    shuffled = promised(head(), DataLoader(rows, batch_size=8, collate_fn=stacked, shuffle=True))
    assert plain.error_bound == shuffled.error_bound and plain.num_examples == 30
    dropped = promised(head(), DataLoader(rows, batch_size=8, collate_fn=stacked, drop_last=True))
    assert dropped.num_examples == 24 and "drop_last left out 6 examples" in " ".join(dropped.notes)
    sampler = RandomSampler(rows, replacement=True)
    with pytest.raises(ValueError, match="draws examples with replacement"):
        promised(head(), DataLoader(rows, batch_size=8, collate_fn=stacked, sampler=sampler))


def _shared(bound: float) -> None:
    from accelerate import Accelerator

    data = held_out(53, 9, 5)
    result = promised(head(), data, accelerator=Accelerator(cpu=True), max_error=0.3)
    assert result.error_bound == bound and result.num_examples == 53


def test_two_processes_promise_what_one_does() -> None:
    one = promised(head(), held_out(53, 9, 5), max_error=0.3)
    on_two_processes(_shared, one.error_bound)


def test_batch_norm_without_running_statistics() -> None:
    class Normed(Head):
        def __init__(self) -> None:
            super().__init__(3)
            self.norm = nn.BatchNorm1d(3, track_running_stats=False)

    with pytest.raises(ValueError, match=r"The batch-norm 'norm' is without running statistics"):
        promised(Normed(), held_out(20, 1))


def test_shards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_pacgen.promises.visit.Shards", lambda model: type("Shards", (), {"active": True}))
    with pytest.raises(
        ValueError, match=r"sharded over processes by fully_shard: expected a whole one in every process"
    ):
        promised(head(), held_out(20, 1))


def test_what_a_loader_leaves_out() -> None:
    assert left_out([]) == left_out(DataLoader(range(10), batch_size=4)) == 0  # type: ignore[arg-type]
    assert left_out(DataLoader(range(10), batch_size=4, drop_last=True)) == 2  # type: ignore[arg-type]


def test_a_model_without_weights_is_where_its_buffers_are() -> None:
    class Rule(nn.Module):
        def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"logits": torch.stack([-features[:, 0], features[:, 0]], -1)}

    data = held_out(COUNT, 3, 25)
    assert promised(Rule(), data).num_errors == promised(head(), data).num_errors
