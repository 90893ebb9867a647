"""The interval of a rank correlation, by simulation."""

from __future__ import annotations

import math

import pytest
import torch

from hf_pacgen.maths.rank_correlation import rank_correlation, rank_interval


@pytest.mark.parametrize("truth", [0.0, 0.8])
def test_the_interval_covers(truth: float) -> None:
    draw = torch.Generator().manual_seed(0)
    spearman = 6 / math.pi * math.asin(truth / 2)  # of normal variables
    covered = 0
    for _ in range(400):
        a, b = torch.randn(2, 12, generator=draw, dtype=torch.float64)
        pair = truth * a + (1 - truth**2) ** 0.5 * b
        low, high = rank_interval(rank_correlation(a.tolist(), pair.tolist()), 12)
        covered += low <= spearman <= high
    assert covered / 400 >= 0.92


def test_few_pairs_are_no_certainty() -> None:
    assert rank_interval(1.0, 3) == (-1, 1)
    assert round(rank_interval(1.0, 4)[0], 2) == -0.73 and rank_interval(1.0, 20)[0] > 0.99
    low, high = rank_interval(-1.0, 5)
    assert low == -rank_interval(1.0, 5)[1] and high == -rank_interval(1.0, 5)[0]
    for value, count in ((1.5, 5), (0.5, 1)):
        with pytest.raises(ValueError, match="at least 2 pairs, and in"):
            rank_interval(value, count)
