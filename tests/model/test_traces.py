"""Work on tensors without elements takes what the real work takes."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import nn

from hf_pacgen.model.traces import LiveMemory, StandIn


def test_live_memory_counts_what_is_alive() -> None:
    known = torch.ones(1000)
    with LiveMemory([known]) as memory:
        view = known.view(10, 100).t()
        first = torch.zeros(250)
        second = first * 2
        assert memory.live == 2000
        del first, second
        assert memory.live == 0 and view.shape == (100, 10)
        torch.sparse_coo_tensor(torch.zeros(1, 2, dtype=torch.long), torch.ones(2), (4,)).coalesce()
    assert memory.live == 0 and memory.peak == 2000


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "vit"])
def test_the_peak_of_a_gradient_is_that_of_the_model(name: str) -> None:
    model, batch = tiny.make(name, dtype=torch.float32), tiny.examples(name, 4, dtype=torch.float32)
    random = torch.get_rng_state()
    twin = StandIn(model)
    there = twin.batch(batch)
    found = twin.trace(lambda: twin.model(**there).loss.backward())
    assert torch.equal(torch.get_rng_state(), random)
    with LiveMemory([*model.parameters(), *model.buffers(), *batch.values()]) as memory:
        model(**batch).loss.backward()
    assert found.peak == memory.peak and found.flops > 0
    assert all(p.grad is None for p in twin.parameters.values())
    fleeting = twin.trace(lambda: twin.model(**there).loss.backward(), fleeting=True)
    assert fleeting.peak <= found.peak and fleeting.flops == found.flops


def test_a_twin_of_another_precision_and_its_sparse_embeddings() -> None:
    model: Any = nn.Sequential(nn.Embedding(1000, 64, padding_idx=0), nn.Linear(64, 2))
    tokens = torch.ones(3, dtype=torch.long)
    peaks = {}
    for dtype in (None, torch.float64):
        twin = StandIn(model, dtype)
        there = twin.batch(tokens)
        peaks[dtype] = twin.trace(lambda t=twin, x=there: t.model(x).sum().backward()).peak  # type: ignore[misc]
        with twin.sparse_embeddings({"0.weight": None}):
            sparse = twin.trace(lambda t=twin, x=there: t.model(x).sum().backward())  # type: ignore[misc]
        assert sparse.peak < peaks[dtype] / 10 and not list(twin.model.modules())[1].sparse
    assert 1.9 < peaks[torch.float64] / peaks[None] <= 2
    assert twin.like({"x": tokens}, torch.float32)["x"].dtype is torch.float32
    assert model[0].padding_idx == 0 and next(model.parameters()).grad is None
