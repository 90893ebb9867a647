"""What :func:`hf_pacgen.pacgen` found, as a result that is printed, saved and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_pacgen.errors import InputError
from hf_pacgen.results.base import Result
from hf_pacgen.results.fields import FACTS, excerpt, measured, origin, other, varied

if TYPE_CHECKING:
    from hf_pacgen.maths.score import ScoreTerms

# what is known of every module, under the names of the result's own fields
MODULE_FIELDS = ("score", "kl_complexity", "hessian_trace", "num_parameters")
PARTS = {"weights": "size of the weights", "hessian": "the Hessian alone", "lipschitz": "added by ρ"}
"""What K(η) is the sum of, and what to call it."""
NATS: dict[str, Any] = {"unit": "nats", "better": "lower", "span": "[0, ∞)"}
SHARE: dict[str, Any] = {"span": "[0, 1]", "legacy": True}


def _stderr(of: str) -> Any:
    return other(
        f"standard error of {of}, over what another seed would change; value ± 1.96 of it is a 95 % interval. None "
        "where it is unknown",
        default=None,
    )


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
    score_stderr: float | None = _stderr("Ψ")
    kl_complexity_stderr: float | None = _stderr("K(η)")
    kl_parts: dict[str, float] = other(
        "what K(η) is the sum of, in nats: 'weights', the saturated part Σ log((|w_i| + N_i)/N_i), the size of the "
        "weights alone; 'hessian', what the Hessian alone adds; 'lipschitz', what ρ adds to that",
        default=dict,
    )
    # None in files of release 0.1, which did not know them
    kl_excess: float | None = measured(
        "K(η) beyond size",
        key="pacgen_kl_excess",
        title="PAC-Bayes complexity beyond the size of the weights",
        says="K(η) less its part from the size of the weights: the KL to the widest noise in the box",
        default=None,
        **NATS,
    )
    kl_excess_stderr: float | None = _stderr("K(η) beyond size")
    kl_curvature: float | None = measured(
        "K(η) of curvature",
        key="pacgen_kl_curvature",
        title="PAC-Bayes complexity of the curvature alone",
        says="½ Σ log(1 + η max(H_ii, 0) (γ w_i)²/3), curvature alone: no ρ, no ε, unchanged by rescaling of layers",
        default=None,
        **NATS,
    )
    kl_curvature_stderr: float | None = _stderr("K(η) of curvature")
    eta: float = other("η of K(η)")
    active_fraction: float = measured(
        "active fraction of Ψ",
        key="pacgen_active_fraction",
        title="Share of the weights in which the root is the larger in PACGen",
        says="share of the weights in which the Hessian with ρ's term is the larger branch of Ψ; kept for old readers",
        default=0.0,
        **SHARE,
    )
    kl_active_fraction: float = measured(
        "active fraction of K(η)",
        key="pacgen_kl_active_fraction",
        title="Share of the weights in which the root is the larger in K(η)",
        says="the same for K(η)",
        default=0.0,
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
    hessian_trace_stderr: float | None = _stderr("the trace, which is Hutchinson's unbiased one")
    hessian_lipschitz: float = measured(
        "ρ",
        key="hessian_lipschitz",
        span="[0, ∞)",
        title="Lipschitz constant ρ of the Hessian (typical value)",
        says="how fast the Hessian of a batch changes nearby: the median over displacements in the box",
    )
    hessian_lipschitz_stderr: float | None = _stderr("ρ")
    hessian_lipschitz_max: float | None = other(
        "the largest ratio found, a lower estimate of the supremum that the theory has; None where ρ was given",
        default=None,
    )
    by_module: dict[str, dict[str, float]] = other(
        "for every module that owns parameters, its share of the score, of K(η), of the parts of K(η) ('kl_weights', "
        "'kl_hessian', 'kl_lipschitz'), of 'kl_curvature', of the trace and of the parameters",
        default=dict,
    )
    estimator: str = other("estimator of the Hessian diagonal that was used")
    hvp_method: str | None = other("method of the Hessian-vector products; None where there were none", default=None)
    num_hvps: int = other("Hessian-vector products of a batch", default=0)
    num_gradients: int = other("gradients of a batch on sampled labels", default=0)
    seconds: float = other("wall-clock time", default=0.0)
    status: tuple[str, ...] = other("what limits the numbers, in sentences; empty if nothing does", default=())
    checks: dict[str, Any] = other("what was checked on the way, and how it came out", default=dict)
    config: dict[str, Any] = other("the settings", default=dict)
    origin: dict[str, Any] = origin()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PACGenResult:
        """The result from :meth:`to_dict`; see :meth:`Result.from_dict`.

        Raises:
            InputError: also a model or a module without parameters, a module that lacks a number, or other parts of
                K(η) than there are.
        """
        result = super().from_dict(values)
        # everything that shows a result divides by these
        if result.num_parameters < 1:
            raise InputError(f"'num_parameters' must be at least 1; got {result.num_parameters}.")
        if result.kl_parts and result.kl_parts.keys() != PARTS.keys():
            raise InputError(
                f"'kl_parts' must have {', '.join(PARTS)}, or be empty; it has {excerpt(result.kl_parts)}. "
                "Write the file with PACGenResult.save()."
            )
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
        "kl_parts": {part: getattr(terms, f"kl_{part}") for part in PARTS},
        "kl_excess": terms.kl_hessian + terms.kl_lipschitz,
        "kl_curvature": terms.kl_curvature,
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
    return {
        module: {
            "score": term.score,
            "kl_complexity": term.kl_complexity,
            **{f"kl_{part}": getattr(term, f"kl_{part}") for part in (*PARTS, "curvature")},
            "hessian_trace": traces[module],
            "num_parameters": term.num_parameters,
        }
        for module, term in sums.items()
    }
