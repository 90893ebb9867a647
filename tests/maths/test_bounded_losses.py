"""Losses in [0, 1] of hand-made answers, by their definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_pacgen.maths.bounded_losses import Answers, PromisedLoss


def answers(logits: Any, labels: Any, **more: Any) -> Answers:
    labels = torch.tensor(labels)
    logits = torch.tensor(logits, dtype=torch.float32)
    return Answers(logits=logits, labels=labels, counted=labels != -100, **more)


def of(loss: str, given: Answers) -> list[float]:
    found: Tensor = PromisedLoss(loss).facts.of(given)
    assert found.dtype == torch.float64 and bool(((found >= 0) & (found <= 1)).all())
    return found.tolist()


TWO = [[[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]], [[0.0, 2.0], [0.0, 2.0], [0.0, math.nan]]]
"""Two sequences of three places: classes 0, 1, 0, and 1, 1 and no number."""


def test_shares_and_matches() -> None:
    given = answers(TWO, [[0, 1, 1], [1, 1, 1]])
    assert of("token_error", given) == pytest.approx([1 / 3, 1 / 3])  # what is no number is wrong
    assert of("exact_match", given) == of("zero_one", given) == [1.0, 1.0]
    given = answers(TWO, [[0, 1, -100], [1, 0, -100]])
    assert of("token_error", given) == [0.0, 0.5] and of("exact_match", given) == [0.0, 1.0]


def test_brier_is_half_of_the_squared_distance() -> None:
    p = torch.tensor([2.0, 0.0]).softmax(0).double()
    given = answers(TWO, [[0, 1, 1], [1, 1, 1]])
    right, wrong = (
        float(((p - torch.tensor([1, 0])) ** 2).sum() / 2),
        float(((p - torch.tensor([0, 1])) ** 2).sum() / 2),
    )
    assert of("brier", given) == pytest.approx([(2 * right + wrong) / 3, (2 * right + 1) / 3])
    sure = answers([[[100.0, 0.0]], [[-100.0, 0.0]]], [[0], [0]])
    assert of("brier", sure) == pytest.approx([0.0, 1.0], abs=1e-12)
    half = Answers(logits=sure.logits.half(), labels=sure.labels, counted=sure.counted)
    assert of("brier", half) == pytest.approx([0.0, 1.0], abs=1e-6)


def test_f1_of_several_labels() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    labels, chosen = (torch.randint(0, 2, (50, 4), generator=generator) for _ in range(2))
    logits = torch.nn.functional.one_hot(chosen, 2).float()
    given = Answers(logits=logits, labels=labels, counted=torch.ones(50, 4).bool(), nothing=0)
    expected = [1 - sklearn.f1_score(a, b, zero_division=1.0) for a, b in zip(labels, chosen, strict=True)]
    assert of("f1", given) == pytest.approx(expected)
    assert 0.0 in expected or not any(map(sum, zip(labels, chosen, strict=True)))


def test_f1_of_tags_counts_those_of_the_right_class() -> None:
    hot = torch.nn.functional.one_hot(torch.tensor([[1, 2, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]]), 3).float()
    labels = torch.tensor([[1, 1, 0, -100], [0, 0, 0, 0], [0, 1, -100, -100]])
    given = Answers(logits=hot, labels=labels, counted=labels != -100, nothing=0)
    assert of("f1", given) == pytest.approx([0.5, 0.0, 0.0])  # one of two found, and of two wanted; nothing; all


@pytest.mark.parametrize(
    ("found", "wanted", "f1"),
    [
        ((2, 4), (2, 4), 1.0),
        ((2, 3), (3, 6), 2 / 6),
        ((0, 0), (0, 0), 1.0),
        ((5, 2), (2, 5), 0.0),
        ((0, 1), (4, 5), 0.0),
    ],
)
def test_f1_of_spans_counts_tokens(found: tuple[int, int], wanted: tuple[int, int], f1: float) -> None:
    logits = torch.nn.functional.one_hot(torch.tensor([found]), 8).float()
    given = Answers(logits=logits, labels=torch.tensor([wanted]), counted=torch.ones(1, 2).bool(), spans=True)
    assert of("f1", given) == pytest.approx([1 - f1])
    assert of("exact_match", given) == [float(found != wanted)]


def test_what_is_no_number_is_as_wrong_as_can_be() -> None:
    broken = answers([[[math.nan, 0.0]], [[math.inf, 0.0]]], [[0], [0]], nothing=1)
    for loss in PromisedLoss:
        assert of(loss.value, broken) == [1.0, 1.0], loss
