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


def _ranks(values: Sequence[float]) -> list[float]:
    # ties share a rank; only differences of ranks matter, so they need not start at 1
    return [sum((other < value) + (other == value) / 2 for other in values) for value in values]
