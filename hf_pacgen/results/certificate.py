"""What :func:`hf_pacgen.certify` proved, as a result that is printed, saved and read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_pacgen.errors import InputError
from hf_pacgen.results.base import Result
from hf_pacgen.results.fields import fits, measured, origin, other

# fields of a certificate that make no sense without each other
NUMBERS = ("bound", "empirical_error", "kl", "n", "delta")


@dataclass(frozen=True, kw_only=True)
class Certificate(Result):
    """What is proved about a noisy model.

    The noisy (Gibbs) model draws new noise on its weights for every example.  With probability at least 1 - δ over
    the draw of the n examples (and over the draws of the noise that estimate its error on them), its expected error
    on a new example of the same distribution is at most ``bound``.  Nothing is said about the model without noise.
    """

    kind, remake, derived = "certificate", "Certify the model again", ("sentence", "comparison")

    bound: float = measured("bound", better="lower", span="[0, 1]", says="on the noisy model's true error, at most 1")
    status: str = other("'certified', or 'vacuous' where the bound is 1, which proves nothing")
    empirical_error: float = other("the noisy model's mean error on the n examples, over the draws")
    empirical_bound: float = other("its Monte-Carlo upper bound, which went into the bound")
    kl: float = other("KL(posterior‖N(p, τ²)) in nats, at the chosen τ")
    price: float = other("what choosing τ from its grid cost, in nats: the bound is taken at kl + price", default=0.0)
    n: int = other("number of independent examples (documents, for language models)")
    delta: float = other("δ, the probability that the certificate fails: at one of the bound and the draws")
    delta_draws: float | None = other("the part of δ that one look at the draws got; None in older files", default=None)
    eta: float = other("η of the Hoeffding bound; for the kl bound, which has none, the η that shaped the noise")
    prior_scale: float = other("τ; where every module has its own, their geometric mean over the weights")
    prior: str = other("what the prior is centered on, in words")
    draws: float = other("draws of the noise on the whole sample")
    num_parameters: int = other("number of certified weights")
    by_module: dict[str, dict[str, float]] = other(
        "for every module that owns certified weights its kl in nats, kl_share, num_parameters and prior_scale",
        default=dict,
    )
    refinement: dict[str, float] | None = other(
        "None without; else the steps, and what a few draws estimate of the bounds before and after (shaped_bound, "
        "refined_bound) and of the gain",
        default=None,
    )
    held_out: bool = other("whether the model was not fitted on the n examples, as far as is known", default=False)
    test_set_bound: float | None = other(
        "beside it, of a model without noise that never saw the examples: the exact upper bound on its error, with "
        "probability 1 - δ by itself; None where there is none",
        default=None,
    )
    test_set_errors: float | None = other("the errors of that model on the n examples, added up", default=None)
    test_set_of: str | None = other("whose: 'model', the certified one, or 'prior', what it was before", default=None)
    test_set_method: str | None = other("'exact (Clopper-Pearson)', or 'betting' where errors are parts", default=None)
    unit: str = other("'example' or 'document'", default="example")
    notes: tuple[str, ...] = other("what was taken for granted, in sentences", default=())
    seconds: float = other("wall-clock time", default=0.0)
    config: dict[str, Any] = other("the settings", default=dict)
    origin: dict[str, Any] = origin()

    @property
    def sentence(self) -> str:
        """What is certified, in one sentence; and in a second one what is known without noise, if anything is."""
        return sentence(vars(self))

    @property
    def comparison(self) -> str:
        """Which of the two bounds is tighter, and what the other is good for; empty where there is one only."""
        return comparison(vars(self))


def sentence(certificate: Mapping[str, Any]) -> str:
    """What a certificate says; the error is rounded up and the probability down."""
    unit, n = certificate.get("unit") or "example", f"{int(certificate['n']):,}"
    kind = examples_of(certificate)
    beside = _without_noise(certificate)
    if certificate["status"] == "vacuous":
        return f"The certificate is vacuous: from {n} {kind} {unit}s at this KL, nothing is proved.{beside}"
    # 1e-6: in binary, 1e4 (1 - δ) may fall just short of the whole number that it is
    confidence = f"{math.floor(1e4 * (1 - certificate['delta']) + 1e-6) / 100:g} %"
    error = rounded_up(certificate["bound"])
    given = f"With probability ≥ {confidence} over the draw of the {n} {kind} {unit}s, the noisy"
    if unit == "document":
        return f"{given} model errs on at most {error} of the labels of a new one, on average over documents.{beside}"
    return f"{given} classifier errs on at most {error} of new ones.{beside}"


def examples_of(certificate: Mapping[str, Any]) -> str:
    """What the n examples are to the model: those it was fitted on, or some that it never saw."""
    return "held-out" if certificate.get("held_out") is True else "training"


def has_test_set(certificate: Mapping[str, Any]) -> bool:
    """Whether a certificate, of ours or another program, has a test-set bound beside it."""
    numbers = (certificate.get("test_set_bound"), certificate.get("test_set_errors"))
    return all(fits(value, float) for value in numbers) and certificate.get("test_set_of") in ("model", "prior")


def _without_noise(certificate: Mapping[str, Any]) -> str:
    if not has_test_set(certificate):
        return ""
    who = "Without noise it" if certificate["test_set_of"] == "model" else "The prior's model, without noise,"
    error = rounded_up(certificate["test_set_bound"])
    # each of the two sentences has δ of its own
    return f" {who} errs, with the same probability, on at most {error} (the test-set bound: {counted(certificate)})."


def counted(certificate: Mapping[str, Any]) -> str:
    """The errors behind a test-set bound, in words."""
    unit, n = certificate.get("unit") or "example", int(certificate["n"])
    return f"{certificate['test_set_errors']:,.6g} errors on {n:,} {unit}s that it never saw"


def comparison(certificate: Mapping[str, Any]) -> str:
    """Which of a certificate's two bounds is tighter, and what the other is good for."""
    if not has_test_set(certificate):
        return ""
    test_set = certificate["test_set_bound"]
    whose = "the model without noise" if certificate["test_set_of"] == "model" else "the prior's model without noise"
    ahead = test_set <= certificate["bound"]
    verdict = (
        f"The test-set bound of {whose} ({rounded_up(test_set)}) is tighter than PAC-Bayes "
        f"({rounded_up(certificate['bound'])})"
        if ahead
        else f"PAC-Bayes ({rounded_up(certificate['bound'])}) is tighter than the test-set bound of {whose} "
        f"({rounded_up(test_set)})"
    )
    why = (
        "PAC-Bayes is for the whole noisy posterior, and for models that were fitted on all data"
        if certificate["test_set_of"] == "model"
        else "PAC-Bayes is for the model that was fitted on these examples, of which no test-set bound exists"
    )
    return f"{verdict}; {why}. Each holds by itself: choose which to quote before you see them."


def rounded_up(bound: float) -> str:
    """A bound in percent, never smaller than it is."""
    # 1e-9: a bound that is a round number stays one
    return f"{math.ceil(1e3 * bound - 1e-9) / 10:g} %"


def certificate_fields(certificate: Any) -> dict[str, Any]:
    """The fields of a certificate, of ours or another program: an object with ``to_dict()``, a dataclass, a mapping.

    Raises:
        InputError: it is none of these, or lacks what makes it a certificate.
    """
    # a card may show the certificate of another program, in one of these three forms
    if hasattr(certificate, "to_dict"):
        certificate = certificate.to_dict()
    elif dataclasses.is_dataclass(certificate) and not isinstance(certificate, type):
        certificate = dataclasses.asdict(certificate)
    if not isinstance(certificate, Mapping):
        raise InputError(
            f"A certificate must be what certify() returned, or its to_dict(); got {type(certificate).__name__}."
        )
    fields = dict(certificate)
    wrong = [name for name in NUMBERS if not fits(fields.get(name), float)]
    if wrong or fields.get("status") not in ("certified", "vacuous"):
        raise InputError(
            f"A certificate must have the numbers {', '.join(NUMBERS)}, and a status, 'certified' or "
            f"'vacuous'; wrong or missing: {', '.join(wrong or ['status'])}. Write it with Certificate.to_dict()."
        )
    return fields
