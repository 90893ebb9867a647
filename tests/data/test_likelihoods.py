"""Which likelihood explains a batch's loss, and by what weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hf_pacgen.data.likelihoods import explain, readings, rebuilt
from hf_pacgen.maths.likelihoods import Likelihood


def explained(likelihood: str, total: Tensor, outputs: Any, batch: Any, *, causal: bool = False) -> Any:
    for reading in readings(Likelihood(likelihood), outputs, causal=causal):
        found = explain(total, reading, outputs, batch, ("labels",), tolerance=1e-4)
        if found is not None:
            again = rebuilt(reading, outputs, batch, ("labels",), found.scales, found.smoothing)
            assert again.item() == pytest.approx(found.value.item())
            return found
    return None


def logits(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


def test_the_next_token_and_the_ignored_are_told() -> None:
    z, labels = logits(2, 5, 4), torch.tensor([[1, 2, 3, -100, 0], [0, 1, 9, 2, 3]])
    kept = labels[:, 1:].masked_fill(labels[:, 1:] == 9, -100)
    total = functional.cross_entropy(z[:, :-1].reshape(-1, 4), kept.reshape(-1))
    found = explained("softmax", total, SimpleNamespace(logits=z), {"labels": labels}, causal=True)
    assert found.reading.way == "next" and found.uniform and abs(found.rest.item()) < 1e-12
    assert found.scales[0].tolist() == pytest.approx([1 / 6] * 6)


def test_classes_may_lie_in_the_second_dimension() -> None:
    z, labels = logits(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    total = functional.cross_entropy(z, labels, reduction="sum")
    assert explained("softmax", total, z, (torch.zeros(2), labels)).reading.way == "second"


def test_spans_of_a_tuple_with_an_end_that_is_out_of_reach() -> None:
    start, end = logits(3, 6), logits(3, 6) * 2
    places = {"start_positions": torch.tensor([0, 2, 5]), "end_positions": torch.tensor([1, 6, 5])}
    losses = [
        functional.cross_entropy(z, y, ignore_index=6) for z, y in zip((start, end), places.values(), strict=True)
    ]
    found = explained("spans", sum(losses) / 2, (start, end), places)  # type: ignore[arg-type]
    assert [scale.tolist() for scale in found.scales] == [pytest.approx([1 / 6] * 3), pytest.approx([1 / 4] * 2)]
    assert explained("spans", sum(losses) / 2, start, places) is None  # type: ignore[arg-type]


def test_what_is_not_of_the_form_is_not_explained() -> None:
    z, labels = logits(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    margin = functional.cross_entropy(z - 2 * functional.one_hot(labels, 3), labels)
    for total in (margin, z.square().sum(), functional.cross_entropy(z, labels) + z.var(0).sum()):
        assert explained("softmax", total, z, {"labels": labels}) is None
    # a focal loss far from its labels: its slopes are those of a weighted one, its value is a fifth less
    shift = torch.tensor([[2.0], [3.0], [4.0]]).repeat(2, 1)
    far = (0.1 * z - shift * functional.one_hot(labels, 3)).detach().requires_grad_()
    each = functional.cross_entropy(far, labels, reduction="none")
    focal = ((1 - (-each).exp()) ** 2 * each).sum()
    reading = next(readings(Likelihood.SOFTMAX, far, causal=False))
    assert explain(focal, reading, far, {"labels": labels}, ("labels",), tolerance=3e-2) is None  # that of bfloat16
    y = torch.zeros(6, 3, dtype=torch.float64)
    assert explained("gaussian", functional.l1_loss(z, y, reduction="sum"), z, {"labels": y}) is None
    assert explained("bernoulli", (z - 2).square().sum(), z, {"labels": y + 2}) is None  # targets beyond 0 and 1
    weighted = (torch.arange(18).view(6, 3) * (z - y).square()).sum()
    assert not explained("gaussian", weighted, z, {"labels": y}).uniform


def test_an_output_of_another_shape_is_refused() -> None:
    z, labels = logits(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    found = explained("softmax", functional.cross_entropy(z, labels), z, {"labels": labels})
    with pytest.raises(ValueError, match="whose units cannot be told"):
        found.terms[0].pick(z[:4])
    with pytest.raises(ValueError, match="has no outputs or targets any more"):
        rebuilt(found.reading, (), {"labels": labels}, ("labels",), found.scales, 0.0)
