"""PAC-Bayes bounds on the risk of a noisy model: float64, elementwise over tensors, no model in sight.

Throughout: a loss in [0, 1], a prior π chosen before the n independent examples were seen, any posterior Q
(the noisy model), KL = KL(Q‖π) in nats, L̂ = E_u L̂(w+u) the noisy empirical loss and L = E_u L(w+u) the
noisy true risk.  Every bound holds for all Q at once with probability at least 1 - δ over the sample; it is
not capped (from 1 on it says nothing) and differentiable.  An argument out of range is a ``ValueError``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_pacgen.maths.binary_kl import Real, as_float64, kl_inverse_upper

# c of the term η/(cn): as arXiv 1809.07402 prints it, and as Hoeffding's lemma gives it for a loss in [0, 1]
ARTICLE_CONSTANT, TIGHT_CONSTANT = 2.0, 8.0


def check_loss(name: str, value: Real) -> Tensor:
    """A loss in [0, 1]."""
    remedy = "Bounds need a bounded loss: use the 0-1 error, or clip and rescale."
    return as_float64(name, value, high=1.0, ends="[]", remedy=remedy)


def check_sample(kl: Real, n: Real, delta: Real) -> tuple[Tensor, Tensor, Tensor]:
    """KL, n and δ, each checked."""
    remedy = "An infinite KL means that the posterior leaves the prior's support."
    return as_float64("kl", kl, remedy=remedy), as_float64("n", n, low=1.0), _probability("delta", delta)


def _probability(name: str, value: Real) -> Tensor:
    return as_float64(name, value, high=1.0, ends="()", remedy="It is the probability that the bound fails.")


def hoeffding_bound(
    loss: Real, kl: Real, n: Real, delta: Real, eta: Real, *, constant: float = TIGHT_CONSTANT
) -> Tensor:
    """PAC-Bayes-Hoeffding at a fixed inverse temperature: L ≤ L̂ + (KL + log(1/δ))/η + η/(cn).

    Args:
        loss, kl: L̂ in [0, 1], and KL(Q‖π) in nats, finite and ≥ 0.
        n, delta: number of independent examples, ≥ 1, and δ in (0, 1).
        eta: η > 0, chosen before the data (see :func:`hoeffding_bound_over_grid`).
        constant: c, :data:`TIGHT_CONSTANT` (8) or the looser :data:`ARTICLE_CONSTANT` (2).

    Source: Catoni (2003); Wang et al. 2018 (arXiv 1809.07402) with c = 2.

    >>> round(hoeffding_bound(0.1, 0.0, 100, 0.05, 40.0).item(), 4) == round(0.1 + math.log(20) / 40 + 0.05, 4)
    True
    """
    loss = check_loss("loss", loss)
    kl, n, delta = check_sample(kl, n, delta)
    eta = as_float64("eta", eta, ends="()")
    return loss + (kl - delta.log()) / eta + eta / (_checked_constant(constant) * n)


def _checked_constant(constant: float) -> float:
    if not 0 < constant <= TIGHT_CONSTANT:
        raise ValueError(
            f"constant must be in (0, 8]; got {constant}. Hoeffding's lemma gives 8 (TIGHT_CONSTANT) "
            "and no larger one holds; the article prints 2 (ARTICLE_CONSTANT)."
        )
    return constant


def hoeffding_bound_over_grid(
    loss: Real, kl: Real, n: Real, delta: Real, etas: Tensor | Sequence[float], *, constant: float = TIGHT_CONSTANT
) -> tuple[Tensor, Tensor]:
    """PAC-Bayes-Hoeffding at the best η of a grid, which costs log k more: δ/k for each of its k values.

    ``etas`` are fixed before the data (:func:`eta_grid`), the rest is as in :func:`hoeffding_bound`; returns the
    smallest bound and the η that reaches it.

    >>> bound, eta = hoeffding_bound_over_grid(0.1, 10.0, 1000, 0.05, torch.tensor([1.0, 300.0]))
    >>> eta.item()
    300.0
    """
    etas = torch.as_tensor(etas, dtype=torch.float64).flatten()
    loss, (kl, n, delta) = check_loss("loss", loss), check_sample(kl, n, delta)
    loss, kl, n, delta = (t.unsqueeze(-1) for t in torch.broadcast_tensors(loss, kl, n, delta))
    bounds = hoeffding_bound(loss, kl, n, union_bound(delta, etas.numel()), etas, constant=constant)
    bound, index = bounds.min(dim=-1)
    return bound, etas[index.to(etas.device)]


def eta_grid(n: float, delta: float, *, ratio: float = 2.0, constant: float = TIGHT_CONSTANT) -> Tensor:
    """A geometric grid of η that depends on n and δ alone, hence may be fixed before the data.

    The best η is sqrt(cn(KL + log(1/δ))), at least sqrt(cn log(1/δ)); beyond cn the bound exceeds 1.
    Between two values of a grid of ratio 2 the η-terms are at most 6 % above their minimum.

    >>> eta_grid(12_000, 0.05).numel()
    9
    """
    high = _checked_constant(constant) * as_float64("n", n, low=1.0).item()
    low = math.sqrt(high * -math.log(_probability("delta", delta).item()))
    ratio = as_float64("ratio", ratio, low=1.0, ends="()").item()
    # the last value may lie beyond cn: a smaller one would leave a gap below it
    steps = max(0, math.ceil(math.log(high / low) / math.log(ratio)))
    return low * ratio ** torch.arange(steps + 1, dtype=torch.float64)


def kl_bound(loss: Real, kl: Real, n: Real, delta: Real) -> Tensor:
    """PAC-Bayes-kl: the largest L in [L̂, 1] with kl(L̂‖L) ≤ (KL + log(2√n/δ))/n; see :func:`hoeffding_bound`.

    Source: Seeger (JMLR 2002), with the constant 2√n of Maurer (2004), who proves it for n ≥ 8;
    for n < 8, E exp(n kl) = Σ_k C(n,k) (k/n)^k (1-k/n)^(n-k) ≤ 2√n term by term (tested).

    >>> round(kl_bound(0.0, 0.0, 4, 0.5).item(), 12) == round(1 - 8 ** -0.25, 12)
    True
    """
    loss = check_loss("loss", loss)
    kl, n, delta = check_sample(kl, n, delta)
    return kl_inverse_upper(loss, (kl + math.log(2.0) + n.log() / 2 - delta.log()) / n)


def monte_carlo_bound(mean: Real, draws: Real, delta: Real, *, one_sided: bool = False) -> Tensor:
    """Upper bound on E_u L̂ from K independent draws of the noise: kl⁻¹(mean, log(2/δ')/K).

    ``one_sided=True`` takes log(1/δ') instead, which is all that an upper bound needs: for p < E,
    P(mean ≤ p) ≤ exp(-K kl(p‖E)) (Hoeffding 1963).  The 2 is of the two-sided form usually printed.

    ``draws`` are K ≥ 1, fixed in advance; need not be whole (:func:`effective_draws`).  To stop at whichever of J
    planned checkpoints looks best, give each δ'/J.

    Source: Langford and Caruana (NIPS 2002).

    >>> round(monte_carlo_bound(0.0, 100, 0.01, one_sided=True).item(), 6) == round(1 - 0.01 ** 0.01, 6)
    True
    """
    mean = check_loss("mean", mean)
    draws = as_float64("draws", draws, low=1.0)
    log_inverse = -_probability("delta", delta).log()
    return kl_inverse_upper(mean, (log_inverse + (0.0 if one_sided else math.log(2.0))) / draws)


def empirical_bernstein_bound(values: Tensor | Sequence[float], delta: Real) -> Tensor:
    """Upper bound on the mean of independent values in [0, 1] by their variance V: mean + sqrt(2V L/K) + 7L/(3(K - 1)).

    L = log(2/δ), and V = Σ(x - mean)²/(K - 1) is the sample's own.  The K ≥ 2 values need not be of one distribution:
    the mean is that of their expectations.  Tighter than :func:`monte_carlo_bound` where each value is itself the mean
    of several errors, which vary less than one error does.

    Source: Maurer and Pontil, *Empirical Bernstein bounds and sample-variance penalization* (COLT 2009), Theorem 4.

    >>> round(empirical_bernstein_bound([0.5] * 8, 2 / math.e ** 3).item(), 12) == 0.5 + 1
    True
    """
    found = torch.as_tensor(values, dtype=torch.float64).flatten()
    found = as_float64("values", found, high=1.0, ends="[]", remedy="Bounds need a bounded loss: clip and rescale.")
    if found.numel() < 2:
        raise ValueError(f"empirical_bernstein_bound needs at least two values; got {found.numel()}.")
    k, log_inverse = found.numel(), math.log(2.0) - _probability("delta", delta).log()
    return found.mean() + (2 * found.var() * log_inverse / k).sqrt() + 7 * log_inverse / (3 * (k - 1))


def effective_draws(weights: Tensor | Sequence[float]) -> float:
    """K of :func:`monte_carlo_bound` when parts of the sample are evaluated under draws of their own.

    With an independent draw u_b per batch, Σ_b w_b L̂_b(w+u_b) (w_b the batch's share, Σ w_b = 1) averages to
    E_u L̂ and is bounded as if by K = 1/max_b w_b draws on the whole sample: one pass over B equal batches
    counts as B draws.  Proof: with f(t) = log(1 - p + p e^{λt}) convex in t, f(0) = 0 and concave in p,
    Σ_b log E e^{λ w_b L̂_b} ≤ Σ_b w_b K log(1 - p_b + p_b e^{λ/K}) ≤ K log(1 - p + p e^{λ/K}), p = Σ w_b p_b,
    which is what K draws give.  ``weights`` are positive, one per independent evaluation, in any unit.

    >>> effective_draws([32, 32, 32, 4])
    3.125
    """
    values = torch.as_tensor(weights, dtype=torch.float64)
    if not values.numel():  # max() would fail without saying why
        raise ValueError("effective_draws needs the weight of at least one evaluation; got none.")
    values = as_float64("weights", values, ends="()")
    return (values.sum() / values.max()).item()


def union_bound(delta: Real, *grid_sizes: int) -> Tensor:
    """δ for each point of one or more grids that are searched after the data were seen: δ / Π k, costing Σ log k.

    >>> union_bound(0.05, 5, 2).item()
    0.005
    """
    for size in grid_sizes:
        # a size of 0 would make δ infinite and prove anything
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"A grid must hold at least one value, counted by an integer; got {size!r}.")
    return _probability("delta", delta) / math.prod(grid_sizes)
