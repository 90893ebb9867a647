"""Spearman's rank correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, ties having their mean rank; NaN where one of the two is constant.

    >>> rank_correlation([1, 2, 3], [10, 20, 15])
    0.5
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(
            f"A rank correlation needs two sequences of one length of at least 2; got {len(first)} and {len(second)}."
        )
    a, b = (torch.tensor(_ranks(values), dtype=torch.float64) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else math.nan


def rank_interval(correlation: float, count: int) -> tuple[float, float]:
    """A 95 % interval of Spearman's ρ from ``count`` pairs; [-1, 1] of three, which say nothing.

    tanh(atanh ρ ± 1.96 sqrt((1 + ρ²/2)/(n - 3))).  A ρ of ±1 counts as half a step less than that, where a step is
    what one exchange of neighbors takes: from a few pairs it is no certainty.

    >>> low, high = rank_interval(1.0, 4)
    >>> round(low, 2), high > 0.99
    (-0.73, True)

    Source: Bonett and Wright 2000, Psychometrika 65.
    """
    if not -1 <= correlation <= 1 or count < 2:
        raise ValueError(f"A rank correlation is of at least 2 pairs, and in [-1, 1]; got {correlation} of {count}.")
    if count <= 3:
        return -1.0, 1.0
    most = 1 - 6 / (count * (count**2 - 1))
    center = math.atanh(min(max(correlation, -most), most))
    half = 1.96 * math.sqrt((1 + correlation**2 / 2) / (count - 3))
    return math.tanh(center - half), math.tanh(center + half)


def _ranks(values: Sequence[float]) -> list[float]:
    # ties share a rank; only differences of ranks matter, so they need not start at 1
    return [sum((other < value) + (other == value) / 2 for other in values) for value in values]
