"""Hooks and marks: left behind by copies, and a second noise of one run is refused."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from hf_pacgen.training.hooks import MARK, Hook, mark, take_over, unmark


def test_a_copy_leaves_a_hook_behind() -> None:
    calls: list[str] = []
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(Hook(lambda *_: calls.append("called"), lambda: calls.append("copied")))
    for way in (copy.deepcopy, _pickled):
        copied = way(layer)
        assert set(calls) == {"copied"}
        calls.clear()
        copied(torch.ones(2))
        assert not calls
    layer(torch.ones(2))
    assert calls == ["called"]


def _pickled(layer: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)  # type: ignore[no-any-return]


def test_what_an_interrupted_run_left_is_closed_and_a_second_noise_refused() -> None:
    layer, optimizer, closed = nn.Linear(2, 2), object(), []

    def close() -> None:
        unmark(layer.parameters())
        closed.append(1)

    mark(layer.parameters(), optimizer, close)
    take_over(copy.deepcopy(layer), optimizer)
    take_over(_pickled(layer), optimizer)
    with pytest.raises(ValueError, match="Two of the PACGenTrainer and its PACGenCallbacks have noise, which would ad"):
        take_over(layer, optimizer)
    assert not closed
    take_over(layer, object())
    assert closed == [1] and not any(hasattr(parameter, MARK) for parameter in layer.parameters())
    mark(layer.parameters(), None, close)
    take_over(layer, None)  # steps by hand have no optimizer, and go on as they like
    assert closed == [1, 1]
