"""The rise of the loss under noise in proportion to the weights, level by level."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hf_pacgen.results.base import Result
from hf_pacgen.results.fields import measured, origin, other

HEADLINE = 0.3  # the level by which runs are compared: of those tried, it went with the gap best


@dataclass(frozen=True, kw_only=True)
class RelativeSharpness(Result):
    """An estimate of E_z L̂(w ⊙ (1 + s z)) - L̂(w) by level s, z uniform in [-1, 1]."""

    kind = "relative sharpness"

    relative_sharpness: float = measured(
        "relative sharpness",
        key="pacgen_relative_sharpness",
        title="Rise of the training loss under noise in proportion to the weights",
        better="lower",
        span="(−∞, ∞)",
        says="mean rise of the loss under uniform noise of ± 0.3 of every weight",
    )
    relative_sharpness_stderr: float | None = other(
        "its standard error, over the noise and the choice of examples; None where there is too little to tell",
        default=None,
    )
    level: float = other("of relative_sharpness: 0.3, or the nearest of the levels given", default=HEADLINE)
    levels: tuple[float, ...] = other("the levels s of the noise, ascending")
    means: tuple[float, ...] = other("the mean rise of the loss at each level")
    stderrs: tuple[float | None, ...] = other("the standard error of each")
    loss: float = measured("training loss", says="L̂(w) on the batches that had noise")
    draws: int = other("antithetic pairs ±z for every batch that had noise, the same at all levels", default=1)
    num_batches: int = other("batches that had noise")
    num_examples: int = other("examples in them")
    num_units: float = other("loss units in them")
    num_forward: int = other("forward passes of a batch, over all processes", default=0)
    seconds: float = other("wall-clock time", default=0.0)
    status: tuple[str, ...] = other("what limits the numbers, in sentences", default=())
    config: dict[str, Any] = other("the settings", default=dict)
    origin: dict[str, Any] = origin()

    def by_level(self) -> Iterator[tuple[float, float, float | None]]:
        """Each level with its mean rise and the standard error of it."""
        yield from zip(self.levels, self.means, self.stderrs, strict=True)


def headline(levels: list[float]) -> int:
    """Which of the levels is nearest to 0.3, as a ratio."""
    return min(range(len(levels)), key=lambda i: max(levels[i] / HEADLINE, HEADLINE / levels[i]))
