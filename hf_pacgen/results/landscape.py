"""The loss along a line or in a plane through a solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    pass

__all__ = ["LossSlice"]


@dataclass(frozen=True, kw_only=True)
class LossSlice:
    """The mean loss at w + s d (a line), or at w + s d + t e (a plane).

    Attributes:
        steps: the values of s, and of t for a plane.
        losses: at these, shape (s,) or (s, t).
        loss: L̂(w).
        box: where the slice leaves the box |u_i| ≤ N_i: the two ends of s for a line, shape (2,), and the outline for a
            plane, shape (points, 2).  Infinite where it never does.
        names: of the directions.
        num_parameters: m.
    """

    steps: tuple[Tensor, ...]
    losses: Tensor
    loss: float
    box: Tensor
    names: tuple[str, ...]
    num_parameters: int
