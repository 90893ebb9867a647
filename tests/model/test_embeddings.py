"""Which embeddings are treated by rows, and what is done to their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hf_pacgen import ScoreConfig, hessian_diagonal
from hf_pacgen.model.embeddings import (
    EmbeddingRows,
    dense,
    lone_embeddings,
    pick_rows,
    whole_embeddings,
)


class Words(nn.Module):
    """An embedding of 64 columns, which the head shares if it is tied, or reads elsewhere if it is peeked at."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.words = nn.Embedding(10, 64)
        self.head = nn.Linear(64, 10, bias=False)
        if kind == "tied":
            self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out = self.head(self.words(tokens)).square().mean()
        return out + self.words.weight.sum() if self.kind == "peeked" else out


def watched(model: Words, tokens: Tensor) -> EmbeddingRows:
    parameters = dict(model.named_parameters())
    rows = EmbeddingRows(model, parameters)
    with rows.watching(), rows.sparse_gradients(), rows.reading(0):
        total = model(tokens)
    rows.keep_alone(total)
    assert all(parameter.grad is None for parameter in parameters.values()) and not model.words.sparse
    return rows


@pytest.mark.parametrize(("kind", "alone"), [("plain", True), ("tied", False), ("peeked", False)])
def test_only_a_matrix_that_nothing_else_reads_is_treated_by_rows(kind: str, alone: bool) -> None:
    rows = watched(Words(kind), torch.tensor([[3, 1], [3, 7]]))
    assert bool(rows.alone) is alone
    assert not alone or rows.of(0)["words.weight"].tolist() == [1, 3, 7]
    assert rows.of(1) == {}
    rows.forget()
    assert rows.of(0) == {}


def test_an_embedding_that_was_not_read_is_treated_as_a_whole() -> None:
    class Unused(Words):
        def forward(self, tokens: Tensor) -> Tensor:
            return self.head.weight.sum()

    assert watched(Unused("plain"), torch.tensor([1])).alone == {}


def test_the_reader_is_told_before_rows_are_read() -> None:
    model, seen = Words("plain"), []
    rows = EmbeddingRows(model, dict(model.named_parameters()))
    rows.on_read = lambda name, indices: seen.append((name, indices.tolist()))
    with rows.watching(), rows.reading(4):
        model.words(input=torch.tensor([2, 2]))
    assert seen == [("words.weight", [2, 2])] and rows.of(4)["words.weight"].tolist() == [2]


@pytest.mark.parametrize(
    "embedding",
    [nn.Embedding(4, 63), nn.Embedding(4, 64, max_norm=1.0), type("Own", (nn.Embedding,), {})(4, 64)],
    ids=["width", "max_norm", "subclass"],
)
def test_other_embeddings_are_treated_as_a_whole(embedding: nn.Embedding) -> None:
    assert lone_embeddings(embedding, dict(embedding.named_parameters())) == {}
    plain = nn.Embedding(4, 64)
    assert list(lone_embeddings(plain, dict(plain.named_parameters()))) == ["weight"]


def test_sparse_gradients_are_the_dense_ones() -> None:
    weight, tokens = torch.randn(6, 3, requires_grad=True), torch.tensor([4, 1, 4])
    functional.embedding(tokens, weight, sparse=True).square().sum().backward()
    assert weight.grad is not None and weight.grad.is_sparse
    expected = torch.zeros(6, 3).index_add_(0, tokens, 2 * weight.detach()[tokens])
    torch.testing.assert_close(dense(weight.grad), expected)
    torch.testing.assert_close(dense(weight.grad.to(torch.bfloat16)).float(), expected, rtol=1e-2, atol=1e-2)
    rows = torch.tensor([0, 1, 4])
    torch.testing.assert_close(pick_rows(weight.grad, rows), expected[rows])
    torch.testing.assert_close(pick_rows(expected, rows), expected[rows])


class _ReadTwice(nn.Module):
    """A table that is read by its layer, and a second time (of other rows) by a function."""

    def __init__(self, when: str, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reentrant, self.gradient_checkpointing = reentrant, reentrant is not None
        self.table, self.head = nn.Embedding(12, 64).double(), nn.Linear(64, 3).double()
        self.when = when

    def forward(self, tokens: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.head(self.read(tokens))  # type: ignore[no-any-return]
        # a reentrant one has a gradient only if an input has
        needed = torch.zeros((), requires_grad=True)
        return self.head(checkpoint(lambda t, _: self.read(t), tokens, needed, use_reentrant=self.reentrant))  # type: ignore[no-any-return]

    def read(self, tokens: Tensor) -> Tensor:
        hidden = self.table(tokens)
        if self.when == "always" or (self.when == "later" and bool((tokens == 5).any())):
            hidden = hidden + nn.functional.embedding((tokens + 1) % 12, self.table.weight)
        return hidden.mean(1).tanh()


@pytest.mark.parametrize("reentrant", [None, False, True], ids=["plain", "checkpoint", "reentrant"])
@pytest.mark.parametrize("when", ["always", "later", "never"])
def test_a_second_reading_of_a_table_counts(when: str, reentrant: bool | None) -> None:
    def loss(model: Any, batch: Any) -> Any:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

    data = [
        (torch.tensor([[1, 2], [3, 4]]), torch.tensor([0, 1])),
        (torch.tensor([[5, 6], [7, 8]]), torch.tensor([2, 0])),
    ]
    config = ScoreConfig(estimator="hutchinson")
    options: Any = {"config": config, "loss_fn": loss, "progress": False}
    found = hessian_diagonal(_ReadTwice(when, reentrant), data, **options).values["table.weight"]
    with whole_embeddings():
        right = hessian_diagonal(_ReadTwice(when, reentrant), data, **options).values["table.weight"]
    assert torch.allclose(found, right, rtol=1e-9, atol=1e-12)
    assert int((found.abs().sum(1) > 0).sum()) == {"always": 9, "later": 9, "never": 8}[when]
