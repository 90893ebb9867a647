"""The models that were trained for a promise: their vote, and how often two of them disagree."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from certificates import Head
from promised import columns, rows
from promised import trained_promise as promised

from hf_pacgen.promises.how import train_and_promise


def test_the_vote_is_that_of_the_mean_probabilities() -> None:
    found = promised(how="progressive")
    features, labels = columns(rows(50, seed=9))
    last = {name: value.clone() for name, value in found.model.state_dict().items()}
    vote = found.vote({"features": features, "labels": labels})
    assert all(torch.equal(value, last[name]) for name, value in found.model.state_dict().items())
    with torch.no_grad():
        mean = sum(found.load(number)(features)["logits"].softmax(-1) for number in range(4))
    assert torch.equal(vote, torch.as_tensor(mean).argmax(-1))


@pytest.mark.parametrize("seed", [2**64, -1, 1.5])
def test_a_seed_that_is_none(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed must be an integer of at least 0"):
        promised().draw(seed)


def test_a_model_number_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"number must be in \[0, 0\], that of a model; got 3\."):
        promised().load(3)
    with pytest.raises(ValueError, match=r"got 0\.5"):
        promised().load(0.5)  # type: ignore[arg-type]


def test_models_without_classes_cannot_disagree_or_vote() -> None:
    class Odd(Head):
        def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            found = super().forward(features, labels)
            return found if labels is not None else SimpleNamespace(scores=1)

    with pytest.raises(ValueError, match=r"expected logits \(examples, classes\); got NoneType\. Take how='split'"):
        train_and_promise(Odd(3), rows(), lambda model, part: None, how="all", unlabeled=rows(9, 3), progress=False)
