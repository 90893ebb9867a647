"""What a score says in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hf_pacgen.results.pacgen import PARTS

if TYPE_CHECKING:
    from hf_pacgen.maths.score import ScoreTerms
    from hf_pacgen.results.diagonal import DiagonalEstimate
    from hf_pacgen.results.fields import Facts
    from hf_pacgen.results.lipschitz import LipschitzEstimate
    from hf_pacgen.results.pacgen import PACGenResult

SATURATED = 0.01  # share of K(η) beyond the size of the weights below which it hardly depends on anything else
NOISY = 0.5  # relative standard error of the trace above which the curvature counts as noisy
RULES = 0.9  # share of K(η) beyond size from which one of the two others counts as all of it

# fields of a result in the order of a table, with a line between groups. Cards have places for these too
SECTIONS = (
    "score score_per_parameter kl_complexity kl_complexity_per_parameter kl_excess kl_curvature".split(),
    "loss hessian_trace hessian_lipschitz".split(),
    "num_parameters num_examples".split(),
)


def findings(
    total: ScoreTerms, diagonal: DiagonalEstimate, smoothness: LipschitzEstimate | None, eta: float
) -> Iterator[str]:
    """Sentences on what limits the numbers; at most one of them tells what to do about K(η)."""
    yield from composition(total, eta)
    yield from diagonal.notes
    if diagonal.trace_stderr is None:
        if diagonal.sample is None or not diagonal.sample.biased:
            yield (
                "The standard error of the trace is unknown: one batch in one pass shows no spread. Leave passes at "
                "its default, or use smaller batches."
            )
    elif diagonal.trace_stderr > NOISY * abs(diagonal.trace):
        yield (
            f"The Hessian's trace is noisy: {diagonal.trace:.4g} ± {diagonal.trace_stderr:.2g}. "
            "Use more passes or more data."
        )
    if smoothness is not None and not smoothness.converged:
        yield (
            f"ρ did not converge in {max(smoothness.iterations)} iterations, and is a lower estimate. "
            "Use more lipschitz_iterations."
        )


def composition(total: ScoreTerms, eta: float) -> Iterator[str]:
    """What Ψ and K(η) are made of, where one part is nearly all of them, and which number to read instead."""
    excess = total.kl_hessian + total.kl_lipschitz
    share, m = excess / total.kl_complexity if total.kl_complexity > 0 else 0.0, total.num_parameters
    saturated = "Ψ is saturated: it is a function of the weights' size alone."
    if share < SATURATED:
        yield (
            f"K(η) at η = {eta:g} is saturated: {percent(1 - share)} of it is the size of the weights, and curvature "
            "hardly matters. Read kl_curvature, in which only the curvature counts."
        )
    elif total.kl_lipschitz >= RULES * excess:
        yield (
            f"ρ rules K(η): of what K(η) has beyond the size of the weights, {percent(total.kl_lipschitz / excess)} is "
            f"added by ρ and {percent(total.kl_hessian / excess)} is the Hessian alone. Read kl_curvature for the "
            "Hessian."
        )
        if total.num_active / m < SATURATED:
            yield saturated
    elif total.num_active / m < SATURATED:
        yield saturated + " Read K(η), which has η in it."


def further_metrics(result: PACGenResult) -> Iterator[tuple[Facts, str]]:
    """Metrics without a place of their own in tables and on cards, and their values: those that are declared later."""
    for name, facts in result.facts().items():
        value = getattr(result, name)
        if facts.key and not facts.legacy and value is not None and not any(name in section for section in SECTIONS):
            yield facts, shown(facts, value)


def shown(facts: Facts, value: float) -> str:
    """A value as its facts ask for."""
    return percent(value) if facts.is_share else f"{value:,}" if isinstance(value, int) else number(value)


def parts(result: PACGenResult) -> str:
    """What K(η) is made of, in a line: "21.0 % size of the weights, < 0.1 % the Hessian alone, 79.0 % added by ρ".

    Nothing where it is unknown, as in results of release 0.1, or where K(η) is 0.
    """
    # what ρ adds can come out at -0.000...1
    found = {key: max(0.0, value) for key, value in result.kl_parts.items()}
    total = sum(found.values())
    return ", ".join(f"{percent(found[key] / total)} {says}" for key, says in PARTS.items()) if total else ""


def with_error(result: PACGenResult, name: str) -> str:
    """A value as its facts ask for, with its standard error where there is one."""
    error = getattr(result, f"{name.removesuffix('_per_parameter')}_stderr", None)
    if error is not None and name.endswith("_per_parameter"):
        error /= result.num_parameters
    return shown(result.facts()[name], getattr(result, name)) + spread(error)


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
