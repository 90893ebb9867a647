"""What a score says in words, and what each module contributes to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hf_pacgen.maths.score import ScoreTerms
from hf_pacgen.results.diagonal import DiagonalEstimate
from hf_pacgen.results.lipschitz import LipschitzEstimate

__all__ = ["SATURATED", "by_module", "findings"]

SATURATED = 0.01
"""Active fraction below which Ψ hardly depends on the curvature."""
NOISY = 0.5
"""Relative standard error of the trace above which the curvature counts as noisy."""
ALONE = 10
"""Ratio of the smoothness term to the trace above which the score is one of ρ alone."""


def by_module(terms: Mapping[str, ScoreTerms], parameter_traces: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The share of every module in the sums of the score and in the trace, from those of its parameters."""
    sums: dict[str, ScoreTerms] = {}
    traces: dict[str, float] = {}
    for name, term in terms.items():
        module = name.rpartition(".")[0] or name
        sums[module] = sums.get(module, ScoreTerms()) + term
        traces[module] = traces.get(module, 0.0) + parameter_traces[name]
    return {
        module: {
            "score": term.score,
            "kl_complexity": term.kl_complexity,
            "hessian_trace": traces[module],
            "num_parameters": term.num_parameters,
            "active_fraction": term.num_active / term.num_parameters,
            "kl_active_fraction": term.num_kl_active / term.num_parameters,
        }
        for module, term in sums.items()
    }


def findings(
    total: ScoreTerms, diagonal: DiagonalEstimate, smoothness: LipschitzEstimate | None, eta: float
) -> Iterator[str]:
    """Sentences on what limits the numbers."""
    active, kl_active = (n / total.num_parameters for n in (total.num_active, total.num_kl_active))
    if active < SATURATED:
        saturated = (
            f"Ψ is saturated: the curvature is felt in {active:.1%} of the coordinates, so Ψ is a function of the "
            "weights' size alone."
        )
        if kl_active >= SATURATED:
            saturated += f" Judge by K(η) at η = {eta:g}, which feels it in {kl_active:.1%}."
        yield saturated
    if kl_active < SATURATED:
        yield (
            f"K(η) is saturated{' too' * (active < SATURATED)}: it feels the curvature in {kl_active:.1%} of the "
            "coordinates. Raise eta, gamma or epsilon to see the curvature."
        )
    yield from diagonal.notes
    if diagonal.trace_stderr is None:
        yield "The standard error of the trace is unknown: one batch in one pass shows no spread. Use smaller batches."
    elif diagonal.trace_stderr > NOISY * abs(diagonal.trace):
        yield (
            f"The Hessian diagonal is noisy: its trace is {diagonal.trace:.4g} ± {diagonal.trace_stderr:.2g}. "
            "Use more passes or more data."
        )
    if smoothness is not None and total.smoothness > ALONE * abs(diagonal.trace):
        yield (
            f"ρ outweighs the curvature: its term Σ ρ√m N_i is {total.smoothness:.3g}, the Hessian's trace "
            f"{diagonal.trace:.3g}, so Ψ and K(η) mostly follow ρ, estimated on {smoothness.batches} "
            f"batch{'es' * (smoothness.batches != 1)}. "
            "More lipschitz_batches make it steadier; a smaller epsilon weighs it less."
        )
    if smoothness is not None and not smoothness.converged:
        yield (
            f"ρ did not converge in {max(smoothness.iterations)} iterations, and is a lower estimate. "
            "Use more lipschitz_iterations."
        )
