"""How many bytes a process sends in the collectives of a score, by the ring algorithm that gloo and NCCL use."""

from __future__ import annotations

import math

__all__ = ["gathered", "reduced"]


def gathered(whole: int, processes: int) -> int:
    """Of a process, so that all have what each has a part of; and as many where sums are dealt out in parts.

    >>> gathered(100, 4), gathered(100, 1)
    (75, 0)
    """
    return math.ceil(whole * (processes - 1) / processes)


def reduced(whole: int, processes: int) -> int:
    """Of a process, so that all have the sum: sums are dealt out in parts, and the parts gathered.

    >>> reduced(100, 4)
    150
    """
    return 2 * gathered(whole, processes)
