"""What :func:`hf_pacgen.certify` proved, as a record that is printed, saved and read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hf_pacgen.results.base import Record

__all__ = ["Certificate"]


@dataclass(frozen=True, kw_only=True)
class Certificate(Record):
    """What is proved about a noisy model.

    The noisy (Gibbs) model draws new noise on its weights for every example.  With probability at least 1 - δ over
    the draw of the n examples (and over the draws of the noise that estimate its error on them), its expected error
    on a new example of the same distribution is at most ``bound``.  Nothing is said about the model without noise.

    Attributes:
        bound: on the noisy model's true error, at most 1.
        status: "certified", or "vacuous" where the bound is 1, which proves nothing.
        empirical_error: the noisy model's mean error on the n examples, over the draws.
        empirical_bound: its Monte-Carlo upper bound, which went into ``bound``.
        kl: KL(posterior‖N(p, τ²)) in nats, at the chosen τ.
        price: what the choice of τ from its grid cost, in nats: the bound is taken at ``kl + price``.
        n: number of independent examples (documents, for language models).
        delta: δ, half for the bound and half for the draws.
        eta: η of the Hoeffding bound; for the kl bound, which has none, the η that shaped the noise.
        prior_scale: τ; where every module has its own (``by_module``), their geometric mean over the weights.
        prior: what the prior is centered on, in words.
        draws: draws of the noise on the whole sample.
        num_parameters: number of certified weights.
        by_module: for every module that owns certified weights its ``kl`` in nats, ``kl_share``, ``num_parameters``
            and ``prior_scale``.
        refinement: None without; else ``steps``, and what a few draws estimate of the bounds before and after
            (``shaped_bound``, ``refined_bound``) and of the ``gain``.
        unit: "example" or "document".
        notes: what was taken for granted, in sentences.
        seconds: wall-clock time.
        config: the settings.
    """

    kind, version, remake, derived = "certificate", 1, "Certify the model again", ("sentence",)

    bound: float
    status: str
    empirical_error: float
    empirical_bound: float
    kl: float
    price: float
    n: int
    delta: float
    eta: float
    prior_scale: float
    prior: str
    draws: float
    num_parameters: int
    by_module: dict[str, dict[str, float]]
    refinement: dict[str, float] | None
    unit: str
    notes: tuple[str, ...]
    seconds: float
    config: dict[str, Any]

    @property
    def sentence(self) -> str:
        """What is certified, in one sentence; the error is rounded up and the probability down."""
        confidence = f"{math.floor(1e4 * (1 - self.delta) + 1e-6) / 100:g} %"
        given = f"With probability ≥ {confidence} over the draw of the {self.n:,} training {self.unit}s, the noisy"
        if self.status == "vacuous":
            return f"The certificate is vacuous: from {self.n:,} training {self.unit}s at this KL, nothing is proved."
        error = f"{math.ceil(1e3 * self.bound - 1e-9) / 10:g} %"
        if self.unit == "document":
            return f"{given} model errs on at most {error} of the labels of a new one, on average over documents."
        return f"{given} classifier errs on at most {error} of new ones."
