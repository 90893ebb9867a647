"""One certified bound out of many candidates, with every choice among them paid for from one δ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from hf_pacgen.facts import complete
from hf_pacgen.maths.binary_kl import Real, as_float64
from hf_pacgen.maths.pac_bayes import (
    ARTICLE_CONSTANT,
    TIGHT_CONSTANT,
    check_loss,
    check_sample,
    eta_grid,
    hoeffding_bound_over_grid,
    kl_bound,
    monte_carlo_bound,
    union_bound,
)

__all__ = ["Bound", "CertifiedBound", "certified_bound"]


class Bound(str, Enum):
    """Which bound certifies."""

    KL = "kl"
    HOEFFDING = "hoeffding"
    HOEFFDING_ARTICLE = "hoeffding_article"

    @classmethod
    def _missing_(cls, value: object) -> Bound:
        known = ", ".join(repr(member.value) for member in cls)
        raise ValueError(f"bound must be one of {known}; got {value!r}.")

    @property
    def label(self) -> str:
        """Its name for people."""
        return _BOUNDS[self].label

    @property
    def has_eta(self) -> bool:
        """Whether it has an inverse temperature η, which is taken from a grid."""
        return _BOUNDS[self].has_eta


Etas: TypeAlias = "Tensor | Sequence[float] | None"
Values: TypeAlias = "tuple[Tensor, Tensor | None, Tensor]"
"""Bounds of all candidates, their best η where there is one, and what one candidate and one η got of δ."""


def _kl_values(loss: Tensor, kl: Tensor, n: Tensor, delta: Tensor, etas: Etas) -> Values:
    return kl_bound(loss, kl, n, delta), None, delta


def _hoeffding_values(c: float, loss: Tensor, kl: Tensor, n: Tensor, delta: Tensor, etas: Etas) -> Values:
    grid = eta_grid(n.item(), delta.item(), constant=c) if etas is None else torch.as_tensor(etas)
    bounds, eta = hoeffding_bound_over_grid(loss, kl, n, delta, grid, constant=c)
    return bounds, eta, union_bound(delta, grid.numel())


@dataclass(frozen=True)
class _Facts:
    label: str
    has_eta: bool
    values: Callable[[Tensor, Tensor, Tensor, Tensor, Etas], Values]
    """Of the empirical loss, KL, n, δ and the grid of η."""


_BOUNDS = complete(
    Bound,
    {
        Bound.KL: _Facts("PAC-Bayes-kl", False, _kl_values),
        Bound.HOEFFDING: _Facts("PAC-Bayes-Hoeffding", True, partial(_hoeffding_values, TIGHT_CONSTANT)),
        Bound.HOEFFDING_ARTICLE: _Facts(
            "PAC-Bayes-Hoeffding with the constant of the article", True, partial(_hoeffding_values, ARTICLE_CONSTANT)
        ),
    },
)


@dataclass(frozen=True, kw_only=True)
class CertifiedBound:
    """What :func:`certified_bound` proved, and with which candidate."""

    bound: float
    """The true noisy risk is at most this, with probability ≥ 1 - δ; at most 1."""
    empirical_bound: float
    """Upper bound on E_u L̂ that went in: the observed mean and its Monte-Carlo correction."""
    mean: float
    """The noisy empirical loss observed."""
    kl: float
    """KL(Q‖π) of the candidate, in nats."""
    eta: float | None
    """Its η, where the bound has one."""
    index: int
    """The candidate's place in the (flattened, broadcast) inputs."""
    delta_bound: float
    delta_monte_carlo: float
    """What one candidate's bound and its Monte-Carlo correction were given of δ."""

    @property
    def vacuous(self) -> bool:
        """Whether nothing was proved: any loss in [0, 1] is at most 1."""
        return self.bound >= 1.0


def certified_bound(
    mean: Real,
    kl: Real,
    n: int,
    *,
    delta: float,
    bound: Bound | str = Bound.KL,
    draws: float | None = None,
    monte_carlo_share: float = 0.5,
    one_sided: bool = False,
    looks: int = 1,
    num_priors: int = 1,
    etas: Etas = None,
) -> CertifiedBound:
    """The best bound among candidates, every choice among them paid for out of one δ.

    δ is split into δ_b = (1-s)δ for the PAC-Bayes bound and δ' = sδ for the Monte-Carlo correction
    (s = ``monte_carlo_share``).  δ_b is shared by the priors and, for Hoeffding, the η; δ' by the
    means and the looks.  Posteriors cost nothing in δ_b: a PAC-Bayes bound holds for all of them at once.

    Args:
        mean: noisy empirical loss in [0, 1]: one for all candidates, or one a posterior.
        kl: KL(Q‖π) in nats of each candidate (posterior, prior); broadcasts with ``mean``.
        n: number of independent examples.
        delta: δ in (0, 1), the probability that anything fails.
        bound: "kl" (the default), "hoeffding" or "hoeffding_article".
        draws: K behind each mean (:func:`effective_draws`); None if the mean is the exact expectation,
            in which case all of δ goes to the bound.
        monte_carlo_share: s in (0, 1).
        one_sided: see :func:`monte_carlo_bound`.
        looks: number of checkpoints planned at which the draws might have been stopped.
        num_priors: size of the grid of priors (of τ), the ones left out of ``kl`` included.
        etas: grid of η for Hoeffding, fixed before the data; by default :func:`eta_grid`.

    Raises:
        ValueError: on an argument out of range, and on ``etas`` for a bound without η.

    >>> certified_bound(0.16, torch.tensor([300.0, 272.0]), 12_000, delta=0.05, draws=10_000, num_priors=2).index
    1
    """
    kind = Bound(bound)
    if etas is not None and not kind.has_eta:
        raise ValueError(f"The {kind.value} bound has no eta; leave out etas, or ask for bound='hoeffding'.")
    mean, (kl, size, total) = check_loss("mean", mean), check_sample(kl, n, delta)
    delta_bound, delta_monte_carlo, empirical = total, torch.zeros_like(total), mean
    if draws is not None:
        share = as_float64("monte_carlo_share", monte_carlo_share, high=1.0, ends="()")
        delta_bound, delta_monte_carlo = (1 - share) * total, union_bound(share * total, mean.numel(), looks)
        empirical = monte_carlo_bound(mean, draws, delta_monte_carlo, one_sided=one_sided)
    delta_bound = union_bound(delta_bound, num_priors)
    bounds, eta, delta_bound = _BOUNDS[kind].values(empirical, kl, size, delta_bound, etas)
    index = int(bounds.argmin())
    chosen = [float(t.expand(bounds.shape).flatten()[index]) for t in (mean, empirical, kl)]
    return CertifiedBound(
        bound=min(bounds.flatten()[index].item(), 1.0),
        empirical_bound=chosen[1],
        mean=chosen[0],
        kl=chosen[2],
        eta=None if eta is None else eta.flatten()[index].item(),
        index=index,
        delta_bound=delta_bound.item(),
        delta_monte_carlo=delta_monte_carlo.item(),
    )
