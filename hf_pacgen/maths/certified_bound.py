"""One certified bound out of many candidates, with every choice among them paid for from one δ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from hf_pacgen.facts import Choice
from hf_pacgen.maths import pac_bayes
from hf_pacgen.maths.binary_kl import Real, as_float64

Etas: TypeAlias = "Tensor | Sequence[float] | None"
# bounds of all candidates, their best η where there is one, and what one candidate and one η got of δ
Values: TypeAlias = "tuple[Tensor, Tensor | None, Tensor]"


def _kl_values(loss: Tensor, kl: Tensor, n: Tensor, delta: Tensor, etas: Etas) -> Values:
    return pac_bayes.kl_bound(loss, kl, n, delta), None, delta


def _hoeffding_values(
    loss: Tensor, kl: Tensor, n: Tensor, delta: Tensor, etas: Etas, c: float = pac_bayes.TIGHT_CONSTANT
) -> Values:
    # the grid is made from n and δ alone: one that looked at the loss could not be paid for by its size
    grid = pac_bayes.eta_grid(n.item(), delta.item(), constant=c) if etas is None else torch.as_tensor(etas)
    bounds, eta = pac_bayes.hoeffding_bound_over_grid(loss, kl, n, delta, grid, constant=c)
    return bounds, eta, pac_bayes.union_bound(delta, grid.numel())


_looser = partial(_hoeffding_values, c=pac_bayes.ARTICLE_CONSTANT)


@dataclass(frozen=True)
class BoundFacts:
    """What is known of a bound."""

    label: str  # for people
    has_eta: bool  # an inverse temperature, which is taken from a grid
    values: Callable[[Tensor, Tensor, Tensor, Tensor, Etas], Values]  # of loss, KL, n, δ and the grid of η


class Bound(Choice):
    """Which bound certifies."""

    facts: BoundFacts

    KL = "kl", BoundFacts("PAC-Bayes-kl", False, _kl_values)
    HOEFFDING = "hoeffding", BoundFacts("PAC-Bayes-Hoeffding", True, _hoeffding_values)
    HOEFFDING_ARTICLE = (
        "hoeffding_article",
        BoundFacts("PAC-Bayes-Hoeffding with the constant of the article", True, _looser),
    )


@dataclass(frozen=True, kw_only=True)
class CertifiedBound:
    """What :func:`certified_bound` proved, and with which candidate."""

    bound: float  # on the true noisy risk, with probability ≥ 1 - δ; at most 1
    empirical_bound: float  # on E_u L̂, which went in: the observed mean and its Monte-Carlo correction
    mean: float  # the noisy empirical loss observed
    kl: float  # KL(Q‖π) of the candidate, in nats
    eta: float | None  # of the candidate, where the bound has one
    index: int  # the candidate's place in the (flattened, broadcast) inputs
    delta_bound: float  # what one candidate's bound was given of δ
    delta_monte_carlo: float  # what its Monte-Carlo correction was given

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
        n, delta: number of independent examples, and δ in (0, 1), the probability that anything fails.
        bound: "kl" (the default), "hoeffding" or "hoeffding_article".
        draws: K behind each mean (:func:`effective_draws`); None if it is exact: then all of δ goes to the bound.
        monte_carlo_share, one_sided: s in (0, 1), and see :func:`monte_carlo_bound`.
        looks: number of checkpoints planned at which the draws might have been stopped.
        num_priors: size of the grid of priors (of τ), the ones left out of ``kl`` included.
        etas: grid of η for Hoeffding, fixed before the data; by default :func:`eta_grid`.

    Raises:
        ValueError: on an argument out of range, and on ``etas`` for a bound without η.

    >>> certified_bound(0.16, torch.tensor([300.0, 272.0]), 12_000, delta=0.05, draws=10_000, num_priors=2).index
    1
    """
    kind = Bound(bound)
    if etas is not None and not kind.facts.has_eta:
        raise ValueError(f"The {kind.value} bound has no eta; leave out etas, or ask for bound='hoeffding'.")
    mean, (kl, size, total) = pac_bayes.check_loss("mean", mean), pac_bayes.check_sample(kl, n, delta)
    delta_bound, delta_monte_carlo, empirical = total, torch.zeros_like(total), mean
    if draws is not None:
        share = as_float64("monte_carlo_share", monte_carlo_share, high=1.0, ends="()")
        delta_bound, delta_monte_carlo = (1 - share) * total, pac_bayes.union_bound(share * total, mean.numel(), looks)
        empirical = pac_bayes.monte_carlo_bound(mean, draws, delta_monte_carlo, one_sided=one_sided)
    delta_bound = pac_bayes.union_bound(delta_bound, num_priors)
    # priors share δ_b whatever the bound; what η is searched, the bound pays for itself
    bounds, eta, delta_bound = kind.facts.values(empirical, kl, size, delta_bound, etas)
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
