"""A prior that is the trained model but for rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_pacgen.certify.likeness import are_alike

torch.manual_seed(0)
TRAINED = {
    "matrix": 0.05 * torch.randn(64, 32),
    "bias": 0.01 * torch.randn(64),
    "norm": 1 + 0.1 * torch.randn(64),
    "tiny": 1e-6 * torch.randn(10),
}


def moved(change: Callable[[Tensor], Tensor], *names: str) -> dict[str, Tensor]:
    return {name: change(w.clone()) if not names or name in names else w.clone() for name, w in TRAINED.items()}


def one_weight(w: Tensor) -> Tensor:
    w.view(-1)[0] += 1e-6
    return w


@pytest.mark.parametrize(
    "prior",
    [
        moved(torch.clone),
        moved(lambda w: w.bfloat16()),
        moved(lambda w: w.half()),
        moved(lambda w: w.bfloat16().half().float()),
        moved(one_weight),
        moved(lambda w: w + 1e-6, "matrix", "bias", "norm"),
        moved(lambda w: w + 1, "matrix"),
        moved(lambda w: w * 2, "bias", "norm", "tiny"),
    ],
)
def test_copies(prior: dict[str, Tensor]) -> None:
    assert are_alike(prior, TRAINED)


def test_what_a_fine_tuning_moves_is_no_copy() -> None:
    step = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2, 1.0):
        prior = {name: w + size * torch.randn(w.shape, generator=step) for name, w in TRAINED.items()}
        # the norms move by less than their rounding, as they do in a fine-tuning
        assert not are_alike(prior, TRAINED)


def test_zeros_are_nobodys_weights() -> None:
    zeros = {"a": torch.zeros(4), "b": torch.zeros(4)}
    assert not are_alike(zeros, zeros)
    trained = {"a": torch.ones(4), "b": torch.zeros(4)}
    assert not are_alike(zeros, trained) and not are_alike({**trained, "a": torch.full((4,), 1e-4)}, zeros)
    assert are_alike(trained, trained)


def test_a_single_number_is_compared_as_well() -> None:
    assert are_alike({"s": torch.tensor([0.5])}, {"s": torch.tensor([0.5])})
    assert not are_alike({"s": torch.tensor([0.6])}, {"s": torch.tensor([0.5])})
