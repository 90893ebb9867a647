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

    kind, remake, derived = "certificate", "Certify the model again", ("sentence",)

    bound: float = measured("bound", better="lower", span="[0, 1]", says="on the noisy model's true error, at most 1")
    status: str = other("'certified', or 'vacuous' where the bound is 1, which proves nothing")
    empirical_error: float = other("the noisy model's mean error on the n examples, over the draws")
    empirical_bound: float = other("its Monte-Carlo upper bound, which went into the bound")
    kl: float = other("KL(posterior‖N(p, τ²)) in nats, at the chosen τ")
    price: float = other("what choosing τ from its grid cost, in nats: the bound is taken at kl + price", default=0.0)
    n: int = other("number of independent examples (documents, for language models)")
    delta: float = other("δ, half for the bound and half for the draws")
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
    unit: str = other("'example' or 'document'", default="example")
    notes: tuple[str, ...] = other("what was taken for granted, in sentences", default=())
    seconds: float = other("wall-clock time", default=0.0)
    config: dict[str, Any] = other("the settings", default=dict)
    origin: dict[str, Any] = origin()

    @property
    def sentence(self) -> str:
        """What is certified, in one sentence."""
        return sentence(vars(self))


def sentence(certificate: Mapping[str, Any]) -> str:
    """What a certificate says; the error is rounded up and the probability down."""
    unit, n = certificate.get("unit") or "example", f"{int(certificate['n']):,}"
    if certificate["status"] == "vacuous":
        return f"The certificate is vacuous: from {n} training {unit}s at this KL, nothing is proved."
    # 1e-6: in binary, 1e4 (1 - δ) may fall just short of the whole number that it is
    confidence = f"{math.floor(1e4 * (1 - certificate['delta']) + 1e-6) / 100:g} %"
    error = rounded_up(certificate["bound"])
    given = f"With probability ≥ {confidence} over the draw of the {n} training {unit}s, the noisy"
    if unit == "document":
        return f"{given} model errs on at most {error} of the labels of a new one, on average over documents."
    return f"{given} classifier errs on at most {error} of new ones."


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
