"""What a score says in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_pacgen.maths.score import ScoreTerms
    from hf_pacgen.results.diagonal import DiagonalEstimate
    from hf_pacgen.results.fields import Facts
    from hf_pacgen.results.lipschitz import LipschitzEstimate
    from hf_pacgen.results.pacgen import PACGenResult

SATURATED = 0.01  # active fraction below which Ψ hardly depends on the curvature
NOISY = 0.5  # relative standard error of the trace above which the curvature counts as noisy
ALONE = 10  # ratio of the smoothness term to the trace above which the score is one of ρ alone

# fields of a result in the order of a table, with a line between groups. Cards have places for these too
SECTIONS = (
    "score score_per_parameter active_fraction kl_complexity kl_complexity_per_parameter kl_active_fraction".split(),
    "loss hessian_trace hessian_lipschitz".split(),
    "num_parameters num_examples".split(),
)


def findings(
    total: ScoreTerms, diagonal: DiagonalEstimate, smoothness: LipschitzEstimate | None, eta: float
) -> Iterator[str]:
    """Sentences on what limits the numbers."""
    # a saturated score comes first: it makes all that follows about the curvature irrelevant to Ψ
    active, kl_active = (n / total.num_parameters for n in (total.num_active, total.num_kl_active))
    if active < SATURATED:
        saturated = (
            f"Ψ is saturated: curvature matters for {active:.1%} of the weights, so Ψ is a function of the weights' "
            "size alone."
        )
        if kl_active >= SATURATED:
            saturated += f" Judge by K(η) at η = {eta:g}, where it matters for {kl_active:.1%}."
        yield saturated
    if kl_active < SATURATED:
        yield (
            f"K(η) is saturated{' too' * (active < SATURATED)}: curvature matters for {kl_active:.1%} of the weights. "
            "Raise eta, gamma or epsilon to see the curvature."
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


def limits(result: PACGenResult) -> list[str]:
    """What limits the numbers, in sentences: the result's own, and that Ψ is saturated if it does not say so."""
    sentences = list(result.status)
    if result.active_fraction < SATURATED and not any("saturated" in sentence for sentence in sentences):
        advice = "Judge by K(η)." if result.kl_active_fraction >= SATURATED else "So is K(η)."
        share = percent(result.active_fraction)
        sentences.insert(0, f"Ψ is saturated: curvature matters for {share} of the weights. {advice}")
    return sentences


def further_metrics(result: PACGenResult) -> Iterator[tuple[Facts, str]]:
    """Metrics without a place of their own in tables and on cards, and their values: those that are declared later."""
    for name, facts in result.facts().items():
        if facts.key and not any(name in section for section in SECTIONS):
            yield facts, shown(facts, getattr(result, name))


def shown(facts: Facts, value: float) -> str:
    """A value as its facts ask for."""
    return percent(value) if facts.is_share else f"{value:,}" if isinstance(value, int) else number(value)


def number(value: float) -> str:
    """Four significant digits, with thousands separated: 1,234,568, 12.35, 0.001235, 1.2e-07."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def spread(stderr: float | None) -> str:
    """The standard error behind a value, to two digits; nothing where it is unknown or 0."""
    # two digits are all that a standard error is good for
    return f" ± {number(float(f'{stderr:.2g}'))}" if stderr else ""


def percent(share: float) -> str:
    """A share as a percentage; one that is not quite 0 or 100 % does not look so."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{share:.1%}".replace("%", " %")
