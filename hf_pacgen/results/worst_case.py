"""The largest rise of the loss found in a box around the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["WorstCaseSharpness"]


@dataclass(frozen=True, kw_only=True)
class WorstCaseSharpness:
    """A lower estimate of the largest rise of the loss in a box around the weights.

    Attributes:
        value: max L̂(w + u) - L̂(w), in units of the loss; not negative.
        relative: 100 value/(1 + L̂(w)), the sharpness of Keskar et al. 2017, in percent.
        loss: L̂(w).
        rises: of every start of the ascent.
        steps: gradients of the whole loss, over all starts.
        converged: whether the best ascent ended before its steps were used up.
        num_examples, num_units: size of the data.
        box: ε of the box ε(|w_i| + 1), None for half-widths by name.
        status: what limits the numbers, in sentences.
        config: the settings.
    """

    value: float
    relative: float
    loss: float
    rises: tuple[float, ...]
    steps: int
    converged: bool
    num_examples: int
    num_units: float
    box: float | None
    status: tuple[str, ...]
    config: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
