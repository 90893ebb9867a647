"""Which posterior to certify: a search that costs nothing, since the bounds hold for all posteriors at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from hf_pacgen.certify.draws import NoisyErrors, planned_passes
from hf_pacgen.certify.posterior import Posterior, PriorFit, PriorScales, shaped_posterior
from hf_pacgen.config import CertificateConfig
from hf_pacgen.maths.certified_bound import CertifiedBound, certified_bound
from hf_pacgen.maths.distributions import difference
from hf_pacgen.maths.pac_bayes import effective_draws, empirical_bernstein_bound, kl_bound, monte_carlo_bound

LOWEST, HIGHEST = -8, 16  # η is searched from n 2⁻⁸ to n 2¹⁶
ENOUGH_DRAWS, MOST_PASSES = 256, 8  # draws by which candidates are compared, and passes for them
LEAST_SHARE = 0.01  # of δ for the draws
HALFWAY = (0.5, 0.25, 0.125)  # α of centers that are tried before the refinement
NEARER = (*HALFWAY, 1 / 16, 1 / 32, 1 / 64)  # the same where the prior was trained, too, and is nearly as good
NARROWER = 4  # times η: less noise, which a center near to the prior can afford
CLOSE = 0.5  # of the distance from a trained prior, below which it is said
MOST_STEPS, LITTLE_KL = 2000, 1.0  # of the refinement that nobody asked for, and nats below which it is of no use
SMALL_SHARE = 0.05  # of the gap: a Monte-Carlo correction below it is worth no more draws


@dataclass(frozen=True, kw_only=True)
class Case:
    """What all steps of one certificate share: model, data and draws, the prior, and the settings."""

    noisy: NoisyErrors
    prior: PriorScales
    config: CertificateConfig
    sizes: list[int]  # numbers of examples of all batches

    @property
    def n(self) -> int:
        """Number of examples."""
        return sum(self.sizes)

    @property
    def stride(self) -> int:
        """The search goes over every ``stride``-th batch."""
        return max(1, self.n // self.config.search_examples)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A posterior with its prior, and an estimate of its bound."""

    posterior: Posterior
    fit: PriorFit
    eta: float
    error: float
    estimate: float  # the kl bound at the error of a few draws, without a Monte-Carlo correction: not certified

    @property
    def rank(self) -> tuple[float, float]:
        """Smaller is better; where bounds are vacuous, the smaller KL."""
        return self.estimate, self.fit.kl


def judge(case: Case, posterior: Posterior, eta: float) -> Candidate:
    """Estimate a posterior's bound; all candidates meet the same draws of standard noise."""
    fit = case.prior.fit(posterior)
    errors: list[float] = []
    passes = 1  # how many more, only the sizes of the batches tell
    while len(errors) < passes:
        error, sizes = case.noisy.mean(posterior, "search", len(errors), stride=case.stride)
        errors.append(error)
        passes = min(MOST_PASSES, -(-ENOUGH_DRAWS // max(1, int(effective_draws(sizes)))))
    error = sum(errors) / passes
    estimate = kl_bound(error, fit.kl + fit.price, case.n, case.config.delta).item()
    return Candidate(posterior=posterior, fit=fit, eta=eta, error=error, estimate=estimate)


def best_shape(case: Case, curvature: Mapping[str, Tensor]) -> Candidate:
    """The Hessian-shaped posterior at the best η: uphill and downhill from η = n by factors of 4, then of 2."""
    config = case.config

    def at(eta: float) -> Candidate:
        return judge(case, _shape(case, case.noisy.saved.copy, curvature, eta), eta)

    if config.eta is not None:
        return at(float(case.n) if config.eta == "n" else cast(float, config.eta))
    tried, best = {0: at(float(case.n))}, 0
    # a local search in coarse, then fine steps: each try costs passes over the data
    for step in (2, 1):
        for sign in (-1, 1):
            while LOWEST <= (exponent := best + sign * step) <= HIGHEST:
                if exponent not in tried:
                    tried[exponent] = at(case.n * 2.0**exponent)
                if tried[exponent].rank >= tried[best].rank:
                    break
                best = exponent
    return tried[best]


def pulled(case: Case, curvature: Mapping[str, Tensor], start: Candidate) -> Candidate:
    """The best of the start and the same shape around weights on the way from the prior: p + α(w - p).

    What was trained further than the examples can pay for is met on the way, where less noise costs less, too; the
    refinement goes on from there.  With ``refine_mean=False`` the center stays where it is.
    """
    if not case.config.refine_mean:
        return start
    best, means = start, start.posterior.means
    for part in NEARER if case.prior.trained else HALFWAY:
        center = {name: torch.lerp(case.prior.center_of(name, w).to(w), w, part) for name, w in means.items()}
        etas = [best.eta]
        if case.prior.trained and case.config.eta is None:
            etas.append(NARROWER * best.eta)
        found = min((judge(case, _shape(case, center, curvature, eta), eta) for eta in etas), key=lambda one: one.rank)
        if found.rank >= best.rank:
            break
        best = found
    return best


def on_the_way(case: Case, chosen: Candidate) -> Iterator[str]:
    """A sentence where what is certified lies nearer to a trained prior than to the model."""
    if not case.prior.trained:
        return
    center, trained = case.prior.center_of, case.noisy.saved.copy

    def distance(means: Mapping[str, Tensor]) -> float:
        moved = (difference(mean, center(name, mean)).square().sum().item() for name, mean in means.items())
        return math.sqrt(sum(moved))

    whole = distance(trained)
    if whole and (share := distance(chosen.posterior.means) / whole) < CLOSE:
        yield (
            f"The noise is centered near the prior: {share:.0%} as far from it as the trained weights are, which the "
            "examples could not pay for. refine_mean=False certifies the noise around the trained weights."
        )


def _shape(case: Case, means: Mapping[str, Tensor], curvature: Mapping[str, Tensor], eta: float) -> Posterior:
    box = {"gamma": case.config.gamma, "epsilon": case.config.epsilon}
    return shaped_posterior(means, curvature, case.prior, eta=eta, distribution=case.config.distribution, **box)


def draws_share(examples: int, draws: float) -> float:
    """The part of δ that the draws get: n/(n + K), where log(1/δ_b)/n + log(1/δ')/K is smallest; at most a half.

    >>> draws_share(1000, 9000.0), draws_share(12_000, 100.0)
    (0.1, 0.5)
    """
    return min(0.5, max(LEAST_SHARE, examples / (examples + draws)))


def planned_steps(case: Case, start: Candidate) -> int:
    """How many steps refine the noise where nobody says: none where there is next to no KL, else by the draws.

    A step costs three forward passes of a batch, and so all of them less than the draws that certify.
    """
    if case.config.refine_steps is not None:
        return case.config.refine_steps
    return 0 if start.fit.kl < LITTLE_KL else min(MOST_STEPS, case.config.draws // 4)


def certified_draws(case: Case, chosen: Candidate) -> tuple[CertifiedBound, float]:
    """Fresh draws of the chosen posterior until their correction hardly matters: the bound, and how many draws."""
    # looked at after planned numbers of passes, each look with an equal part of the draws' share of δ
    # the plan is made before an error is seen
    config, looks, fit = case.config, planned_passes(case.config.draws, case.sizes), chosen.fit
    share = draws_share(case.n, effective_draws(case.sizes) * looks[-1])
    found: list[tuple[float, int]] = []

    def look(passes: int) -> tuple[CertifiedBound, float]:
        while len(found) < passes * len(case.sizes):
            # other keys than in the search: the posterior was chosen for its error under those draws
            found.extend(case.noisy.errors(chosen.posterior, "certificate", len(found) // len(case.sizes)))
        draws, delta = effective_draws(case.sizes) * passes, share * config.delta / len(looks)
        mean = min(sum(errors for errors, _ in found) / (case.n * passes), 1.0)
        empirical = noisy_error_bound(found, draws, delta)
        settings: Any = {"delta": (1 - share) * config.delta, "bound": config.bound, "etas": config.etas}
        result = certified_bound(empirical, fit.kl + fit.price, case.n, **settings)
        return replace(result, kl=fit.kl, mean=mean, empirical_bound=empirical, delta_monte_carlo=delta), draws

    for passes in looks[:-1]:
        result, draws = look(passes)
        correction = result.empirical_bound - result.mean
        if result.vacuous or correction <= SMALL_SHARE * (result.bound - result.empirical_bound):
            return result, draws
    return look(looks[-1])


def noisy_error_bound(found: Sequence[tuple[float, int]], draws: float, delta: float) -> float:
    """A bound on the noisy error from the sums of errors of some batches, with their sizes, each under its own draw.

    The smaller of two, which share δ: by the number of draws, and by the variance of what the batches gave, which is
    less than that of a single error where a batch has many examples.
    """
    sizes = torch.tensor([size for _, size in found], dtype=torch.float64)
    errors = torch.tensor([error for error, _ in found], dtype=torch.float64)
    mean, most = (errors.sum() / sizes.sum()).clamp(max=1.0), sizes.max()
    bounds = [monte_carlo_bound(mean, draws, delta / 2, one_sided=True)]
    if len(found) > 1:
        # Σ errors = most Σ (errors/most), so a smaller batch is one of the same size whose other examples are right
        by_variance = empirical_bernstein_bound((errors / most).clamp(max=1.0), delta / 2) * most * len(found)
        bounds.append(by_variance / sizes.sum())
    return min(1.0, *(bound.item() for bound in bounds))
