"""The loss along a line or in a plane through a solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_pacgen.results.base import Result
from hf_pacgen.results.fields import measured, other

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LossSlice(Result):
    """The mean loss at w + s d (a line), or at w + s d + t e (a plane)."""

    kind, remake = "slice of the loss", "Call loss_slice() again"

    steps: tuple[Tensor, ...] = other("the values of s, and of t for a plane", written=False)
    losses: Tensor = other("at these, shape (s,) or (s, t)", written=False)
    loss: float = measured("mean training loss", says="L̂(w)")
    box: Tensor = other(
        "where the slice leaves the box |u_i| ≤ N_i: the two ends of s for a line, shape (2,), and the outline for a "
        "plane, shape (points, 2); infinite where it never does",
        written=False,
    )
    names: tuple[str, ...] = other("of the directions")
    num_parameters: int = other("m")
