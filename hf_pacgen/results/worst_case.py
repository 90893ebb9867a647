"""The largest rise of the loss found in a box around the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_pacgen.results.base import Result
from hf_pacgen.results.fields import measured, origin, other


@dataclass(frozen=True, kw_only=True)
class WorstCaseSharpness(Result):
    """A lower estimate of the largest rise of the loss in a box around the weights."""

    kind, unversioned = "worst-case sharpness", True

    value: float = measured("worst-case rise", better="lower", says="max L̂(w + u) - L̂(w) found; not negative")
    relative: float = measured(
        "worst-case sharpness",
        unit="%",
        better="lower",
        says="100 value/(1 + L̂(w)), the sharpness of Keskar et al. 2017",
    )
    loss: float = measured("training loss", says="L̂(w)")
    rises: tuple[float, ...] = other("of every start of the ascent", default=())
    steps: int = other("gradients of the whole loss, over all starts", default=0)
    converged: bool = other("whether the best ascent ended before its steps were used up", default=False)
    num_examples: int = other("examples in the data")
    num_units: float = other("loss units in the data")
    box: float | None = other("ε of the box ε(|w_i| + 1), None for half-widths by name", default=None)
    status: tuple[str, ...] = other("what limits the numbers, in sentences", default=())
    config: dict[str, Any] = other("the settings", default=dict)
    origin: dict[str, Any] = origin()
