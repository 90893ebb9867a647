"""Standard errors of a score, from the diagonals of some weights by groups of batches.

A score is no linear function of the diagonal: noise in the diagonal moves its mean too. So it is computed again without
each group (the jackknife), from halves and quarters of the groups (which have more noise, and so more of the shift),
along what the blend may have missed, and with ρ one standard error up and down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_pacgen.maths.score import CoordinateTerms, coordinate_terms
from hf_pacgen.maths.student import interval_stderr

__all__ = ["DiagonalSample", "Part", "ScoreErrors"]

VALUES = ("score", "kl_complexity", "kl_excess", "kl_curvature")
"""What gets a standard error."""
WITHOUT_RHO = ("kl_curvature",)
"""Those of them that ρ has no part in."""
HALVES = 6
"""Ways in which the groups are cut into halves."""


@dataclass(frozen=True)
class Part:
    """One of the estimates that a diagonal is made of.

    Attributes:
        shares: of it in the diagonal, by name of the tensor.
        sums: Σ n_b d_b of some weights for every group of batches, shape (groups, weights), by name.
        units: Σ n_b of every group.
    """

    shares: Mapping[str, float]
    sums: Mapping[str, Tensor]
    units: Tensor

    def mean(self, name: str, kept: Tensor) -> Tensor:
        """The diagonals of a tensor from some groups, shape (choices, weights); all groups where none of them is."""
        kept = kept.double()
        units = kept @ self.units
        kept = torch.where((units > 0).unsqueeze(1), kept, torch.ones_like(kept))
        return (kept @ self.sums[name].double().cpu()) / (kept @ self.units).unsqueeze(1)


@dataclass(frozen=True)
class DiagonalSample:
    """The diagonal of some weights by groups of batches.

    Attributes:
        places, scales: flat indices of the weights in each tensor, and how many weights each stands for.
        parts: one, or two for a blend: the unbiased one first.
        biased: whether nothing tells how far the diagonal is from the Hessian's.
        exact: whether there is no error at all.
    """

    places: Mapping[str, Tensor]
    scales: Mapping[str, float]
    parts: Sequence[Part]
    biased: bool = False
    exact: bool = False

    @property
    def occupied(self) -> list[int]:
        """The groups that have batches."""
        return (self.parts[0].units > 0).nonzero().squeeze(1).tolist()


@dataclass
class ScoreErrors:
    """Sums over tensors (and shards) that give the standard errors of Ψ, K(η), ``kl_excess`` and ``kl_curvature``.

    Args:
        sample: the diagonals.
        rho, rho_stderr: ρ and its standard error; None where that is unknown.
        root: √m.
        gamma, eta: γ and η.
    """

    sample: DiagonalSample
    rho: float
    rho_stderr: float | None
    root: float
    gamma: float
    eta: float
    table: Tensor = field(init=False)

    def __post_init__(self) -> None:
        groups, number = self.sample.occupied, len(self.sample.parts[0].units)
        every = torch.zeros(1, number)
        every[0, groups] = 1
        without = every.repeat(len(groups), 1)
        without[range(len(groups)), groups] = 0
        halves = torch.zeros(2 * HALVES, number)
        generator = torch.Generator().manual_seed(0)
        for i in range(HALVES):
            order = torch.tensor(groups)[torch.randperm(len(groups), generator=generator)]
            halves[2 * i, order[: len(groups) // 2]] = 1
            halves[2 * i + 1, order[len(groups) // 2 :]] = 1
        quarters = torch.zeros(4, number)
        for i in range(4):
            quarters[i, groups[i::4] or groups] = 1
        self._every, self._without, self._parts = every, without, torch.cat([halves, quarters])
        # rows: the score, ρ up and down, without each group, halves, quarters, what was missed in all and without each
        rows = 3 + len(without) + len(self._parts) + 1 + len(without)
        self.table = torch.zeros(rows, len(VALUES), dtype=torch.float64)

    def add(self, name: str, weights: Tensor, *, epsilon: float) -> None:
        """Add a tensor: its weights that are in the sample, and ε as a length."""
        weights, scale = weights.double().cpu(), self.sample.scales[name]
        middle = self._diagonal(name, self._every)[0]
        rows = [self._sums(weights, middle, epsilon, rho) for rho in (self.rho, *self._rho_range())]
        for kept in (*self._without, *self._parts):
            rows.append(self._sums(weights, self._diagonal(name, kept.unsqueeze(0))[0], epsilon, self.rho))
        slopes = self._slopes(weights, middle, epsilon)
        rows += list(self._missed(name, torch.cat([self._every, self._without])) @ slopes)
        self.table += scale * torch.stack(rows)

    def _rho_range(self) -> tuple[float, float]:
        """ρ one standard error up and down: by factors, as ratios scatter, unless their median is 0."""
        stderr = self.rho_stderr or 0.0
        if self.rho == 0:
            return 2 * stderr, 0.0
        return self.rho * math.exp(stderr / self.rho), self.rho * math.exp(-stderr / self.rho)

    def _diagonal(self, name: str, kept: Tensor) -> Tensor:
        return sum((part.shares[name] * part.mean(name, kept) for part in self.sample.parts), torch.zeros(()))

    def _missed(self, name: str, kept: Tensor) -> Tensor:
        """(1 - α)(h - g): what the unbiased part has beyond the blend."""
        first, *others = self.sample.parts
        nothing = torch.zeros(len(kept), len(self.sample.places[name]), dtype=torch.float64)
        missed = ((first.mean(name, kept) - part.mean(name, kept)) * part.shares[name] for part in others)
        return sum(missed, nothing)

    def _terms(self, weights: Tensor, diagonal: Tensor, epsilon: float, rho: float) -> Tensor:
        settings = {"gamma": self.gamma, "epsilon": epsilon, "eta": self.eta}
        return _values(coordinate_terms(weights, diagonal, rho * self.root, **settings))

    def _sums(self, *arguments: Tensor | float) -> Tensor:
        return self._terms(*arguments).sum(1)  # type: ignore[arg-type]

    def _slopes(self, weights: Tensor, diagonal: Tensor, epsilon: float) -> Tensor:
        """Derivatives of the terms by the diagonal, shape (weights, values)."""
        step = 1e-4 * diagonal.abs() + 1e-6 * diagonal.abs().mean() + 1e-30
        low, high = (self._terms(weights, d, epsilon, self.rho) for d in (diagonal, diagonal + step))
        return ((high - low) / step).t()

    def finish(self) -> dict[str, float | None]:
        """The standard errors, such that ± 1.96 of one is a 95 % interval; None where it is unknown.

        Call it when all tensors (of all shards) are in :attr:`table`.
        """
        groups = len(self._without)
        if self.sample.biased or (groups < 2 and not self.sample.exact):
            return dict.fromkeys(VALUES, None)
        middle, up, down = self.table[:3]
        smooth = (up - down) / 2
        variance = smooth.square()
        if not self.sample.exact:
            without, rest = self.table[3:].split([groups, len(self.table) - 3 - groups])
            halves, quarters, missed, missed_without = rest.split([2 * HALVES, 4, 1, groups])
            # where noise makes entries negative, which count as 0, the mean moves with the noise and not its square:
            # from half of the groups to all it falls by √2 - 1 of what is left, from a quarter by as much as is left
            half, quarter = (halves.mean(0) - middle) / (math.sqrt(2) - 1), quarters.mean(0) - middle
            shift = torch.maximum(half.abs(), quarter.abs())
            variance = variance + _jackknife(without) + shift.square()
            variance = variance + missed[0].square() + _jackknife(missed_without)
        found: dict[str, float | None] = dict(zip(VALUES, variance.sqrt().tolist(), strict=True))
        if self.rho_stderr is None:
            found |= {name: None for name in VALUES if name not in WITHOUT_RHO}
        return found


def _values(terms: CoordinateTerms) -> Tensor:
    excess = terms.kl_complexity - terms.kl_weights
    return torch.stack([terms.score, terms.kl_complexity, excess, terms.kl_curvature])


def _jackknife(without: Tensor) -> Tensor:
    """The variance of a value, from the values without each of some groups; widened as these are few."""
    groups = len(without)
    variance = (without - without.mean(0)).square().sum(0) * (groups - 1) / groups
    return variance * interval_stderr(1.0, groups - 1) ** 2
