"""What :func:`hf_pacgen.pacgen` found, as a result that is printed, saved and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_pacgen.errors import InputError
from hf_pacgen.results.base import Result
from hf_pacgen.results.fields import FACTS, excerpt, measured, other, varied

if TYPE_CHECKING:
    from hf_pacgen.maths.score import ScoreTerms

# what is known of every module, under the names of the result's own fields
MODULE_FIELDS = ("score", "kl_complexity", "hessian_trace", "num_parameters", "active_fraction", "kl_active_fraction")
NATS: dict[str, Any] = {"unit": "nats", "better": "lower", "span": "[0, ∞)"}
SHARE: dict[str, Any] = {"span": "[0, 1]", "detail": True}


def _per_parameter(total: Any, says: str) -> Any:
    # the field of a score over the number of parameters
    of = total.metadata[FACTS]
    names = {"label": f"{of.label}/m", "key": f"{of.key}_per_parameter", "title": f"{of.title} per parameter"}
    return varied(total, says=says, detail=True, **names)


@dataclass(frozen=True, kw_only=True)
class PACGenResult(Result):
    """PACGen of a model, with what is needed to judge it.  Lower is better.

    Scores add over parameters, so compare them between models of one architecture, or use the values per parameter.
    """

    kind, remake = "result", "Score the model again"

    score: float = measured("Ψ", key="pacgen", title="PACGen", says="the published PACGen score", **NATS)
    score_per_parameter: float = _per_parameter(score, "per parameter, to compare models of different sizes")
    kl_complexity: float = measured(
        "K(η)", key="pacgen_kl", title="PAC-Bayes complexity", says="complexity in the PAC-Bayes bound at η", **NATS
    )
    kl_complexity_per_parameter: float = _per_parameter(kl_complexity, "the same per parameter")
    eta: float = other("η of K(η)")
    active_fraction: float = measured(
        "active fraction of Ψ",
        key="pacgen_active_fraction",
        title="Share of the weights for which curvature matters in PACGen",
        says="share of the weights for which curvature matters in Ψ; near 0, Ψ sees only how large the weights are",
        **SHARE,
    )
    kl_active_fraction: float = measured(
        "active fraction of K(η)",
        key="pacgen_kl_active_fraction",
        title="Share of the weights for which curvature matters in K(η)",
        says="the same for K(η)",
        **SHARE,
    )
    num_parameters: int = measured("m", says="trainable parameters")
    num_examples: int = measured("examples", says="training examples scored")
    num_units: float = other("loss units in them: labeled tokens, or examples")
    loss: float = measured("training loss", says="mean training loss of the data, without dropout")
    hessian_trace: float = measured(
        "Hessian trace",
        key="hessian_trace",
        span="(−∞, ∞)",
        title="Trace of the Hessian of the training loss",
        says="Σ H_ii, how sharp the minimum is",
    )
    hessian_trace_stderr: float | None = other(
        "standard error of the trace, without the bias of 'gauss_newton', of which 'blend' keeps a part; None where a "
        "single batch shows no spread",
        default=None,
    )
    hessian_lipschitz: float = measured(
        "ρ",
        key="hessian_lipschitz",
        span="[0, ∞)",
        title="Lipschitz constant ρ of the Hessian (lower estimate)",
        says="how fast the Hessian changes nearby; a lower estimate",
    )
    by_module: dict[str, dict[str, float]] = other(
        "for every module that owns parameters, its share of the score, of K(η), of the trace and of the parameters, "
        "and its own active fractions",
        default=dict,
    )
    estimator: str = other("estimator of the Hessian diagonal that was used")
    hvp_method: str | None = other("method of the Hessian-vector products; None where there were none", default=None)
    num_hvps: int = other("Hessian-vector products of a batch", default=0)
    num_gradients: int = other("gradients of a batch on sampled labels", default=0)
    seconds: float = other("wall-clock time", default=0.0)
    status: tuple[str, ...] = other("what limits the numbers, in sentences; empty if nothing does", default=())
    config: dict[str, Any] = other("the settings", default=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PACGenResult:
        """The result from :meth:`to_dict`; see :meth:`Result.from_dict`.

        Raises:
            InputError: also a model or a module without parameters, or a module that lacks a number.
        """
        result = super().from_dict(values)
        # everything that shows a result divides by these
        if result.num_parameters < 1:
            raise InputError(f"'num_parameters' must be at least 1; got {result.num_parameters}.")
        for module, numbers in result.by_module.items():
            if not numbers.keys() >= set(MODULE_FIELDS) or numbers["num_parameters"] < 1:
                raise InputError(
                    f"the module {excerpt(module)} must have {', '.join(sorted(MODULE_FIELDS))}, and at least one "
                    f"parameter; it has {excerpt(numbers)}. Write the file with PACGenResult.save()."
                )
        return result

    def ranked_modules(self, count: int) -> tuple[list[tuple[str, dict[str, float]]], list[dict[str, float]]]:
        """The modules with the largest share of K(η), by name, and those that are left."""
        ranked = sorted(self.by_module.items(), key=lambda item: -item[1]["kl_complexity"])
        return ranked[:count], [numbers for _, numbers in ranked[count:]]


def score_fields(terms: ScoreTerms) -> dict[str, Any]:
    """The fields of a result that follow from the sums of the score alone."""
    m = terms.num_parameters
    return {
        "score": terms.score,
        "score_per_parameter": terms.score / m,
        "kl_complexity": terms.kl_complexity,
        "kl_complexity_per_parameter": terms.kl_complexity / m,
        "active_fraction": terms.num_active / m,
        "kl_active_fraction": terms.num_kl_active / m,
        "num_parameters": m,
    }


def by_module(terms: Mapping[str, ScoreTerms], parameter_traces: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The share of every module in the sums of the score and in the trace, from those of its parameters."""
    sums: dict[str, ScoreTerms] = {}
    traces: dict[str, float] = {}
    for name, term in terms.items():
        if not term.num_parameters:  # a parameter without elements, of which models of few layers have some
            continue
        module = name.rpartition(".")[0] or name  # a parameter of the model itself is its own module
        sums[module] = sums[module] + term if module in sums else term
        traces[module] = traces.get(module, 0.0) + parameter_traces[name]
    # the shares of a module are a score of its own: the sums add over parameters
    found = {module: {**score_fields(term), "hessian_trace": traces[module]} for module, term in sums.items()}
    return {module: {name: numbers[name] for name in MODULE_FIELDS} for module, numbers in found.items()}
