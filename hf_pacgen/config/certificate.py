"""Settings of a certificate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from hf_pacgen.config.score import Estimator
from hf_pacgen.config.settings import (
    SUBSET,
    Config,
    Count,
    Grid,
    Natural,
    NonNegative,
    Positive,
    Seed,
    Temperature,
    option,
)
from hf_pacgen.facts import Choice
from hf_pacgen.maths.certified_bound import Bound
from hf_pacgen.maths.distributions import NoiseDistribution


def _module_of(name: str) -> str:
    # a parameter of the model itself is a group of its own
    return name.rpartition(".")[0] or name


def _kind_of(name: str) -> str:
    # layers are numbered: modules of one kind differ in their number only
    return ".".join(part for part in _module_of(name).split(".") if not part.isdigit())


class PriorGroups(Choice):
    """Which weights share one scale τ of the prior; a member's facts name a parameter's group."""

    facts: Callable[[str], str]

    MODEL = "model", lambda name: "all"
    KIND = "kind", _kind_of
    MODULE = "module", _module_of


def _patterns(value: Any, name: str) -> list[str]:
    # one pattern is often given as a string, whose letters would pass for patterns
    names = [value] if isinstance(value, str) else list(value)
    if not names or not all(isinstance(pattern, str) for pattern in names):
        raise ValueError(f"{name} must be patterns of parameter names; got {value!r}.")
    return names


Patterns = Annotated[list[str], _patterns]


@dataclass(frozen=True, kw_only=True)
class CertificateConfig(Config):
    """Settings of :func:`hf_pacgen.certify`.

    ``prior_scales`` is fixed before the data is seen and paid for; ``eta`` shapes the posterior, which is free.

    >>> CertificateConfig(bound="hoeffding", delta=0.01).to_dict()["bound"]
    'hoeffding'
    """

    delta: Positive = option(0.05, "δ: the certificate fails with at most this probability.")
    bound: Bound = option(Bound.KL, "'kl' (the tightest), 'hoeffding', or 'hoeffding_article' (looser constant).")
    distribution: NoiseDistribution = option(
        NoiseDistribution.NORMAL,
        "Noise of the weights: 'normal', 'truncated_normal' or 'uniform'. The last two stay in the box γ|w_i| + ε.",
    )
    draws: Count = option(10_000, "Most draws of the noise; each batch has its own, and one pass is the least.")
    prior_scales: Grid | None = option(
        None, "Grid of the prior's standard deviation τ, fixed before the data. By default 2^(j/4) from 1.2e-4 to 11."
    )
    prior_groups: PriorGroups = option(
        PriorGroups.MODEL,
        "Which weights share one τ: all ('model'), modules of one name in every layer ('kind'), or those of a module "
        "('module'). Each τ is paid for.",
    )
    eta: Temperature | None = option(
        None, "η that shapes the noise, 1/s² = ηH + 1/τ²: a number, or 'n', the examples. By default searched, free."
    )
    etas: Grid | None = option(None, "Hoeffding's grid of η, fixed before the data, paid for. By default from n and δ.")
    parameters: Patterns | None = option(
        None, "Patterns of names ('classifier.*') of the weights that are certified. By default all trainable ones."
    )
    refine_steps: Natural | None = option(
        None,
        "Steps of gradient descent that refine the Hessian-shaped noise. By default a quarter of the draws, at most "
        "2,000, and none where the KL is below 1.",
    )
    refine_mean: bool = option(True, "Let the refinement move the center of the noise too.")
    refine_learning_rate: Positive = option(0.05, "Its learning rate, in units of the noise's scale.")
    estimator: Estimator = option(Estimator.GAUSS_NEWTON, "Estimator of the Hessian diagonal that shapes the noise.")
    search_examples: Count = option(2048, "Examples from which the curvature is estimated and η is searched.")
    max_examples: Count | None = option(None, SUBSET)
    gamma: NonNegative = option(0.1, "γ of the box γ|w_i| + ε, for uniform and truncated normal noise.")
    epsilon: NonNegative = option(0.1, "ε of that box.")
    assume_independent: bool = option(
        False,
        "Certify although some examples repeat or are packed, or the prior equals the trained weights or is a "
        "checkpoint: you vouch that the examples are independent of each other and of the prior.",
    )
    held_out: bool = option(
        False,
        "The model was not fitted on these examples, you say: they are called held-out, and the exact bound of the "
        "model without noise stands beside the certificate. An unchanged model of train_prior() needs no word.",
    )
    seed: Seed = option(0, "Seed of the noise and of the subset.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delta >= 1:
            raise ValueError(f"delta must be less than 1, the probability that the bound fails; got {self.delta}.")
        # a certificate divides by the noise, so its KL would be infinite
        if self.epsilon == 0 and self.distribution.facts.stays_in_box():
            raise ValueError("epsilon is 0, so weights of 0 have no noise; make it positive, or use 'normal' noise.")
        if self.etas is not None and not self.bound.facts.has_eta:
            raise ValueError(
                f"The {self.bound.value} bound has no eta to search; leave out etas, or take bound='hoeffding'."
            )
