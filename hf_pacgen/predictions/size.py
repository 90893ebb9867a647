"""How large the noise of predictions should be, from the training data alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_pacgen.predictions.levels import Noise
from hf_pacgen.predictions.passes import go_over, steady
from hf_pacgen.predictions.reading import PlaceReader, Places
from hf_pacgen.predictions.tally import cross_entropy
from hf_pacgen.promises.visit import Visit, visiting

__all__ = ["Rise", "Size", "find_size", "largest"]

PAIRS = 6
"""Draws ±u of each size that is tried, of which the mean and the variance of the rise are made."""
FIRST, SMALLEST, LARGEST, HALVINGS = 0.2, 0.05, 4.0, 2
"""Where the search begins and ends, and how often the factor of 2 between two sizes is halved."""


@dataclass(frozen=True)
class Rise:
    """The rise S = n (L̂(w + u) + L̂(w - u))/2 - n L̂(w) of the total training loss under noise, in nats, over draws.

    Attributes:
        mean, variance: E S and Var S (of one draw, unbiased).
        draws: that these are made of.
    """

    mean: float
    variance: float
    draws: int

    @property
    def directions(self) -> float:
        """d = 2 (E S)²/Var S, how many directions the rise comes from.

        To second order S = Σ_i σ_i² n h_i z_i²/2; where d of its terms are alike, E S = d c and Var S = 2 d c².
        """
        if self.variance <= 0 or self.draws <= 3:
            return 0.0
        # of few draws the inverse of the variance is too large on average, by this factor for normal S
        return 2 * self.mean**2 / self.variance * (self.draws - 3) / (self.draws - 1)


@dataclass(frozen=True)
class Size:
    """The size that was found.

    Attributes:
        scale: in units of each row's root mean square.
        loss: the total NLL of all training labels without noise, in nats.
        count: training labels that were looked at.
        rises: of the total loss, by every size that was tried.
    """

    scale: float
    loss: float
    count: int
    rises: dict[float, Rise]

    def to_dict(self) -> dict[str, Any]:
        """In words that JSON knows."""
        rise = self.rises.get(self.scale)
        known = {"training_labels": self.count, "total_loss": self.loss, "trials": len(self.rises)}
        return known | ({} if rise is None else {"rise": rise.mean, "directions": rise.directions})

    @property
    def sentence(self) -> str:
        """What was done, for the notes."""
        rise = self.rises.get(self.scale)
        if rise is None:
            least = self.rises[min(self.rises)].directions
            return (
                f"There is no noise, since it has nothing to give: the total NLL of the training labels is "
                f"{self.loss:.3g} nats, more than half a nat for each of the {least:.2g} directions that noise would "
                "have, so that the model is not fitted beyond what a posterior would be."
            )
        return (
            f"The size {self.scale:.3g} was found on {self.count:,} training labels: it raises their total NLL of "
            f"{self.loss:.3g} nats by {rise.mean:.3g}, together at most half a nat for each of the "
            f"{rise.directions:.2g} directions that it has."
        )


def find_size(model: nn.Module, data: Any, *, seed: int, max_examples: int | None, **options: Any) -> Size:
    """The largest noise under which the total training loss is at most d/2 nats; none for a model that has that anyway.

    The noise that minimizes the PAC-Bayes bound to second order, Σ_i σ_i² h_i/2 + KL/n, has n σ_i² h_i = 1 in every
    direction that it feels: from its minimum, taken for 0, it raises the total loss n L̂ by half a nat for each of d
    directions.  How many these are the spread of the rise S over draws tells, d = 2 (E S)²/Var S.  A model that was
    trained less, or cannot fit its labels, has that loss by itself: it lies where the posterior lies, and is not too
    sure.

    Raises:
        ValueError: training data without labels.
    """
    with visiting(model, data, stage="size of the noise", seed=seed, max_examples=max_examples, **options) as visit:
        steady(visit)
        look = _Training(visit)
        count = look.begin()
        tried: dict[float, Rise] = {}

        def fits(scale: float) -> bool:
            visit.tick.stage(f"noise of size {scale:.3g}", passes=2 * PAIRS)
            rise = tried[scale] = look.rise(Noise(scale), range(seed, seed + PAIRS))
            return look.loss + rise.mean <= rise.directions / 2

        scale = largest(fits)
    return Size(scale, look.loss, count, tried)


class _Training:
    """The loss of the training labels, with and without noise."""

    def __init__(self, visit: Visit) -> None:
        self.visit, self.reader = visit, PlaceReader(visit.model)
        # the loss is that of all examples, of which some are looked at
        self.factor, self.loss = 1.0, 0.0

    def begin(self) -> int:
        """Look at the total loss without noise; the number of labels."""

        def read(index: int, places: Places) -> tuple[float, int, int]:
            return cross_entropy(places), 0 if places.labels is None else len(places.labels), places.num_rows

        found = go_over(self.visit, self.reader, read)
        count, seen = sum(labels for _, labels, _ in found), sum(rows for _, _, rows in found)
        if not count:
            raise ValueError(
                "The training data has no labels, on which the size of the noise is found: expected at least one. Give "
                "labeled training_data, or noise_scale as a number."
            )
        if self.visit.batches.is_subset:
            self.factor = max(1.0, self.visit.batches.num_examples() / seen)
        self.loss = self.factor * sum(loss for loss, _, _ in found)
        return count

    def rise(self, noise: Noise, seeds: range) -> Rise:
        """The rise of the total loss of all training examples under pairs of draws."""
        rises = []
        for seed in seeds:
            total = 0.0
            # of u and -u together the gradient has no part
            for mirrored in (False, True):
                with noise.on(self.visit.model, seed, mirrored=mirrored):
                    total += sum(go_over(self.visit, self.reader, lambda index, places: cross_entropy(places))) / 2
            rises.append(self.factor * total - self.loss)
        mean = sum(rises) / len(rises)
        return Rise(mean, sum((rise - mean) ** 2 for rise in rises) / (len(rises) - 1), len(rises))


def largest(fits: Callable[[float], bool]) -> float:
    """The largest size that fits, to a factor of 2^(1/4); 0 where not even the smallest does.

    >>> round(largest(lambda scale: scale < 1.0), 2)
    0.95
    """
    good, bad, scale = 0.0, math.inf, FIRST
    while SMALLEST <= scale <= LARGEST and (good == 0 or math.isinf(bad)):
        if fits(scale):
            good, scale = scale, 2 * scale
        else:
            bad, scale = scale, scale / 2
    if good == 0 or math.isinf(bad):
        return good
    for _ in range(HALVINGS):
        middle = math.sqrt(good * bad)
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
