"""Which posterior to certify: a search that costs nothing, since the bounds hold for all posteriors at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor

from hf_pacgen.certify.draws import NoisyErrors, planned_passes
from hf_pacgen.certify.posterior import Posterior, PriorFit, PriorScales, shaped_posterior
from hf_pacgen.config import CertificateConfig
from hf_pacgen.maths.certified_bound import CertifiedBound, certified_bound
from hf_pacgen.maths.pac_bayes import effective_draws, kl_bound

LOWEST, HIGHEST = -8, 16  # η is searched from n 2⁻⁸ to n 2¹⁶
ENOUGH_DRAWS, MOST_PASSES = 256, 8  # draws by which candidates are compared, and passes for them
SMALL_SHARE = 0.1  # of the gap: a Monte-Carlo correction below it is worth no more draws


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
        box = {"gamma": config.gamma, "epsilon": config.epsilon}
        kind, means = config.distribution, case.noisy.saved.copy
        return judge(case, shaped_posterior(means, curvature, case.prior, eta=eta, distribution=kind, **box), eta)

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


def certified_draws(case: Case, chosen: Candidate) -> tuple[CertifiedBound, float]:
    """Fresh draws of the chosen posterior until their correction hardly matters: the bound, and how many draws."""
    # looked at after planned numbers of passes, each look with an equal part of the draws' share of δ
    # the plan is made before an error is seen
    looks, fit = planned_passes(case.config.draws, case.sizes), chosen.fit
    errors: list[float] = []

    def look(passes: int) -> tuple[CertifiedBound, float]:
        while len(errors) < passes:
            # other keys than in the search: the posterior was chosen for its error under those draws
            errors.append(case.noisy.mean(chosen.posterior, "certificate", len(errors))[0])
        draws = effective_draws(case.sizes) * passes
        settings: Any = {"delta": case.config.delta, "bound": case.config.bound, "etas": case.config.etas}
        mean, kl = min(sum(errors) / passes, 1.0), fit.kl + fit.price
        result = certified_bound(mean, kl, case.n, draws=draws, one_sided=True, looks=len(looks), **settings)
        return replace(result, kl=fit.kl), draws

    for passes in looks[:-1]:
        result, draws = look(passes)
        correction = result.empirical_bound - result.mean
        if result.vacuous or correction <= SMALL_SHARE * (result.bound - result.empirical_bound):
            return result, draws
    return look(looks[-1])
