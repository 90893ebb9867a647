"""Which solutions a measure may rank: those of equal training loss, as far as standard errors tell them apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_pacgen.results.measures import Measures

RELATIVE, ABSOLUTE = 0.1, 0.02  # differences of the training loss up to which a score ranks solutions
AGREE = f"within {RELATIVE:.0%} or {ABSOLUTE}".replace("%", " %")
REASON = (
    "A score ranks solutions of equal training loss only; across different ones, lower scores have gone with lower "
    "accuracy"
)
COVERS = 1.96  # standard errors on each side of a 95 % interval


@dataclass(frozen=True)
class Order:
    """The ranked runs by one measure, lowest first.

    ``tied[i]`` says whether the intervals of runs i and i + 1 overlap; None where a standard error is unknown.
    """

    names: tuple[str, ...]
    tied: tuple[bool | None, ...]

    def __str__(self) -> str:
        signs = {True: " ≈ ", False: " < ", None: " ? "}
        return "".join(name + signs[tie] for name, tie in zip(self.names, self.tied, strict=False)) + self.names[-1]

    @property
    def is_judged(self) -> bool:
        """Whether all standard errors are known."""
        return None not in self.tied


def agree(losses: Sequence[float]) -> bool:
    """Whether training losses agree: within 10 % of the larger, or 0.02.

    >>> agree([0.010, 0.029]), agree([1.0, 1.1]), agree([1.0, 1.2])
    (True, True, False)
    """
    low, high = min(losses, default=0.0), max(losses, default=0.0)
    return high - low <= max(ABSOLUTE, RELATIVE * abs(high)) * (1 + 1e-12)


def ranked(losses: Sequence[float]) -> list[int]:
    """The largest set of runs whose losses all agree, in the order given; of equally large ones that of lowest loss.

    It is empty where no two agree.

    >>> ranked([0.5, 0.1, 0.11, 0.09])
    [1, 2, 3]
    """
    by_loss = sorted(range(len(losses)), key=losses.__getitem__)
    best: list[int] = []
    for first in range(len(by_loss)):
        group = [i for i in by_loss[first:] if agree([losses[by_loss[first]], losses[i]])]
        best = group if len(group) > len(best) else best
    return sorted(best) if len(best) > 1 else []


def stderr_of(row: Any, field: str) -> float | None:
    """The standard error of a result's number ``x``, its ``x_stderr``; None where there is none."""
    total = field.removesuffix("_per_parameter")
    stderr = getattr(row, f"{total}_stderr", None)
    if stderr is None or total == field:
        return stderr
    return float(stderr) / float(row.num_parameters)


def order(rows: Sequence[Measures], field: str) -> Order | None:
    """The order of some runs by a measure, or None where one of them lacks it."""
    known: list[tuple[float, str, float | None]] = []
    for row in rows:
        value = getattr(row, field)
        if value is None:
            return None
        known.append((value, row.name, stderr_of(row, field)))
    known.sort(key=lambda found: found[0])
    tied = [
        None if a_error is None or b_error is None else b - a <= COVERS * (a_error + b_error)
        for (a, _, a_error), (b, _, b_error) in itertools.pairwise(known)
    ]
    return Order(tuple(name for _, name, _ in known), tuple(tied))


def orders(rows: Sequence[Measures]) -> dict[str, Order]:
    """The order of the runs of equal training loss by every measure of which lower is better."""
    chosen = [rows[i] for i in ranked([row.loss for row in rows])]
    if not chosen:
        return {}
    sizes = {row.num_parameters for row in chosen}
    fields = [name for name, facts in Measures.facts().items() if facts.label and facts.better == "lower"]
    # a sum over more weights is larger by itself; of models of one size, both have the same order
    apart = {name.removesuffix("_per_parameter") for name in fields if name.endswith("_per_parameter")}
    left_out = apart if len(sizes) > 1 else {f"{name}_per_parameter" for name in apart}
    found = {name: order(chosen, name) for name in fields if name not in left_out}
    return {name: made for name, made in found.items() if made is not None}


def unranked(rows: Sequence[Measures]) -> str | None:
    """A sentence on the runs that are left unranked, and why; None where all are ranked, or there is only one."""
    chosen = set(ranked([row.loss for row in rows]))
    left = [row for i, row in enumerate(rows) if i not in chosen]
    if not left or len(rows) < 2:
        return None
    if not chosen:
        return f"No run is ranked: no two of them have training losses that agree ({AGREE}). {REASON}."
    names = ", ".join(f"{row.name} ({row.loss:.4g})" for row in left)
    losses = sorted(rows[i].loss for i in chosen)
    others = f"{losses[0]:.4g} to {losses[-1]:.4g}"
    verb = "is" if len(left) == 1 else "are"
    return f"{names} {verb} left unranked: the training losses of the others are {others} ({AGREE} agrees). {REASON}."
