"""Which posterior to certify: a search that costs nothing, since the bounds hold for all posteriors at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from hf_pacgen.certify.draws import NoisyErrors, planned_passes
from hf_pacgen.certify.posterior import Posterior, PriorFit, PriorScales, shaped_posterior
from hf_pacgen.certify.refinement import refine
from hf_pacgen.config import CertificateConfig
from hf_pacgen.maths.certified_bound import CertifiedBound, certified_bound
from hf_pacgen.maths.pac_bayes import effective_draws, kl_bound

__all__ = ["Candidate", "best_shape", "certified_draws", "refined"]

LOWEST, HIGHEST = -8, 16
"""η is searched from n 2⁻⁸ to n 2¹⁶."""
ENOUGH_DRAWS, MOST_PASSES = 256, 8
"""Draws by which candidates are compared, and passes over the searched examples for them."""
SMALL_SHARE = 0.1
"""Of the gap: a Monte-Carlo correction below it is worth no more draws."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A posterior with its prior, and an estimate of its bound.

    Attributes:
        estimate: the kl bound at the error of a few draws, without a Monte-Carlo correction: not certified.
    """

    posterior: Posterior
    fit: PriorFit
    eta: float
    error: float
    estimate: float

    @property
    def rank(self) -> tuple[float, float]:
        """Smaller is better; where bounds are vacuous, the smaller KL."""
        return self.estimate, self.fit.kl


def judge(
    noisy: NoisyErrors,
    posterior: Posterior,
    prior: PriorScales,
    eta: float,
    *,
    n: int,
    delta: float,
    stride: int,
    tick: Callable[[], Any],
) -> Candidate:
    """Estimate a posterior's bound; all candidates meet the same draws of standard noise."""
    fit = prior.fit(posterior)
    errors: list[Any] = []
    passes = 1
    while len(errors) < passes:
        error, sizes = noisy.mean(posterior, "search", len(errors), stride=stride, tick=tick)
        errors.append(error)
        passes = min(MOST_PASSES, -(-ENOUGH_DRAWS // max(1, int(effective_draws(sizes)))))
    error = sum(errors) / passes
    estimate = kl_bound(error, fit.kl + fit.price, n, delta).item()
    return Candidate(posterior=posterior, fit=fit, eta=eta, error=error, estimate=estimate)


def best_shape(
    noisy: NoisyErrors,
    curvature: Mapping[str, Tensor],
    prior: PriorScales,
    config: CertificateConfig,
    *,
    n: int,
    stride: int,
    tick: Callable[[], Any],
) -> Candidate:
    """The Hessian-shaped posterior at the best η: uphill and downhill from η = n by factors of 4, then of 2."""

    def at(eta: float) -> Candidate:
        posterior = shaped_posterior(
            noisy.saved.copy,
            curvature,
            prior,
            eta=eta,
            distribution=config.distribution,
            gamma=config.gamma,
            epsilon=config.epsilon,
        )
        return judge(noisy, posterior, prior, eta, n=n, delta=config.delta, stride=stride, tick=tick)

    if config.eta is not None:
        return at(n if config.eta == "n" else config.eta)  # type: ignore[arg-type]
    tried = {0: at(float(n))}
    best = 0
    for step in (2, 1):
        for sign in (-1, 1):
            while LOWEST <= (exponent := best + sign * step) <= HIGHEST:
                if exponent not in tried:
                    tried[exponent] = at(n * 2.0**exponent)
                if tried[exponent].rank >= tried[best].rank:
                    break
                best = exponent
    return tried[best]


def refined(
    noisy: NoisyErrors,
    start: Candidate,
    prior: PriorScales,
    config: CertificateConfig,
    *,
    n: int,
    stride: int,
    tick: Callable[[], Any],
) -> Candidate:
    """The start, or what gradient descent made of it if that is better."""
    posterior = refine(
        noisy,
        start.posterior,
        prior,
        n=n,
        delta=config.delta,
        error=start.error,
        eta=start.eta,
        steps=config.refine_steps,
        learning_rate=config.refine_learning_rate,
        move_means=config.refine_mean,
        tick=tick,
    )
    after = judge(noisy, posterior, prior, start.eta, n=n, delta=config.delta, stride=stride, tick=tick)
    return min(start, after, key=lambda candidate: candidate.rank)


def certified_draws(
    noisy: NoisyErrors,
    chosen: Candidate,
    config: CertificateConfig,
    *,
    n: int,
    sizes: list[int],
    tick: Callable[[], Any],
) -> tuple[CertifiedBound, float]:
    """Fresh draws of the chosen posterior until their correction hardly matters, and the bound they certify.

    The draws are looked at after planned numbers of passes, each look with an equal part of the draws' share of δ.

    Returns:
        The bound and the number of draws on the whole sample that were made.
    """
    looks = planned_passes(config.draws, sizes)
    errors: list[float] = []

    def look(passes: int) -> tuple[CertifiedBound, float]:
        while len(errors) < passes:
            errors.append(noisy.mean(chosen.posterior, "certificate", len(errors), tick=tick)[0])
        draws = effective_draws(sizes) * passes
        result = certified_bound(
            min(sum(errors) / passes, 1.0),
            chosen.fit.kl + chosen.fit.price,
            n,
            delta=config.delta,
            bound=config.bound,
            draws=draws,
            one_sided=True,
            looks=len(looks),
            etas=config.etas,
        )
        return replace(result, kl=chosen.fit.kl), draws

    for passes in looks[:-1]:
        result, draws = look(passes)
        correction = result.empirical_bound - result.mean
        if result.vacuous or correction <= SMALL_SHARE * (result.bound - result.empirical_bound):
            return result, draws
    return look(looks[-1])
