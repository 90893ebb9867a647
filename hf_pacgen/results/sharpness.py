"""What the measures of sharpness found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

__all__ = ["Sharpness"]


@dataclass(frozen=True, kw_only=True)
class Sharpness:
    """An estimate of E_u L̂(w + u) - L̂(w).

    Attributes:
        mean: the estimate, in units of the loss.
        stderr: its standard error, from the spread of every batch's draws; None after a single draw.
        draws: draws of the noise for every batch; a pair ±u counts once.
        converged: whether the standard error came below the tolerance.
        loss: L̂(w).
        num_examples, num_units: size of the data.
        num_forward: forward passes of a batch, over all processes.
        noise_scale: the level, where it is one number.
        status: what limits the numbers, in sentences.
        config: the settings.
    """

    mean: float
    stderr: float | None
    draws: int
    converged: bool
    loss: float
    num_examples: int
    num_units: float
    num_forward: int
    noise_scale: float | None
    status: tuple[str, ...]
    config: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"status": list(self.status)}
