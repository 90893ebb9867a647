"""One certified bound out of many candidates, with every choice among them paid for from one δ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

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


@dataclass(frozen=True, kw_only=True)
class CertifiedBound:
    """What :func:`certified_bound` proved, and with which candidate.

    Attributes:
        bound: the true noisy risk is at most this, with probability ≥ 1 - δ; at most 1.
        empirical_bound: upper bound on E_u L̂ that went in: the observed mean and its Monte-Carlo correction.
        mean: the noisy empirical loss observed.
        kl: KL(Q‖π) of the candidate, in nats.
        eta: its η; None for the kl bound.
        index: the candidate's place in the (flattened, broadcast) inputs.
        delta_bound, delta_monte_carlo: what one candidate's bound and its Monte-Carlo correction were given of δ.
    """

    bound: float
    empirical_bound: float
    mean: float
    kl: float
    eta: float | None
    index: int
    delta_bound: float
    delta_monte_carlo: float

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
    etas: Tensor | Sequence[float] | None = None,
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

    Returns:
        The smallest bound, with its parts.

    Raises:
        ValueError: on an argument out of range, and on ``etas`` for the kl bound.

    >>> certified_bound(0.16, torch.tensor([300.0, 272.0]), 12_000, delta=0.05, draws=10_000, num_priors=2).index
    1
    """
    kind = Bound(bound)
    mean, (kl, size, total) = check_loss("mean", mean), check_sample(kl, n, delta)
    delta_bound, delta_monte_carlo, empirical = total, torch.zeros_like(total), mean
    if draws is not None:
        share = as_float64("monte_carlo_share", monte_carlo_share, high=1.0, ends="()")
        delta_bound, delta_monte_carlo = (1 - share) * total, union_bound(share * total, mean.numel(), looks)
        empirical = monte_carlo_bound(mean, draws, delta_monte_carlo, one_sided=one_sided)
    delta_bound = union_bound(delta_bound, num_priors)
    eta: Tensor | None = None
    if kind is Bound.KL:
        if etas is not None:
            raise ValueError("The kl bound has no eta; leave out etas, or ask for bound='hoeffding'.")
        bounds = kl_bound(empirical, kl, size, delta_bound)
    else:
        constant = TIGHT_CONSTANT if kind is Bound.HOEFFDING else ARTICLE_CONSTANT
        grid = eta_grid(n, delta_bound.item(), constant=constant) if etas is None else torch.as_tensor(etas)
        bounds, eta = hoeffding_bound_over_grid(empirical, kl, size, delta_bound, grid, constant=constant)
        delta_bound = union_bound(delta_bound, grid.numel())
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
