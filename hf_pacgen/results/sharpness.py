"""What the measures of sharpness found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_pacgen.results.base import Result
from hf_pacgen.results.fields import measured, origin, other


@dataclass(frozen=True, kw_only=True)
class Sharpness(Result):
    """An estimate of E_u L̂(w + u) - L̂(w)."""

    kind, unversioned = "sharpness", True

    mean: float = measured(
        "expected sharpness", better="lower", says="mean rise of the loss under noise on the weights"
    )
    stderr: float | None = other(
        "standard error of the mean rise, from the spread of every batch's draws; None after a single draw",
        default=None,
    )
    draws: int = other("draws of the noise for every batch; a pair ±u counts once")
    converged: bool = other("whether the standard error came below the tolerance", default=False)
    loss: float = measured("training loss", says="L̂(w)")
    num_examples: int = other("examples in the data")
    num_units: float = other("loss units in the data")
    num_forward: int = other("forward passes of a batch, over all processes", default=0)
    noise_scale: float | None = other("the level, where it is one number", default=None)
    status: tuple[str, ...] = other("what limits the numbers, in sentences", default=())
    config: dict[str, Any] = other("the settings", default=dict)
    origin: dict[str, Any] = origin()
