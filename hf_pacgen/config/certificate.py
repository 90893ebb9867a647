"""Settings of a certificate."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hf_pacgen.config.score import Estimator
from hf_pacgen.config.settings import (
    Config,
    check_flag,
    check_number,
    choice,
    inverse_temperature,
    option,
    positive_grid,
)
from hf_pacgen.maths.certified_bound import Bound
from hf_pacgen.maths.distributions import NoiseDistribution

__all__ = ["PriorGroups", "CertificateConfig"]


class PriorGroups(str, Enum):
    """Which weights share one scale τ of the prior."""

    MODEL = "model"
    KIND = "kind"
    MODULE = "module"


@dataclass(frozen=True, kw_only=True)
class CertificateConfig(Config):
    """Settings of :func:`hf_pacgen.certify`.

    ``prior_scales`` is fixed before the data is seen and paid for; ``eta`` shapes the posterior, which is free.

    >>> CertificateConfig(bound="hoeffding", delta=0.01).to_dict()["bound"]
    'hoeffding'
    """

    delta: float = option(0.05, "δ: the certificate fails with at most this probability.")
    bound: Bound = option(
        Bound.KL, "Bound that certifies: 'kl' (the tightest), 'hoeffding', or 'hoeffding_article' (looser constant)."
    )
    distribution: NoiseDistribution = option(
        NoiseDistribution.NORMAL,
        "Noise of the weights: 'normal', 'truncated_normal' or 'uniform'. The last two stay in the box γ|w_i| + ε.",
    )
    draws: int = option(
        10_000, "Number of draws of the noise at most; every batch has a draw of its own, and one pass is the least."
    )
    prior_scales: list[float] | None = option(
        None, "Grid of the prior's standard deviation τ, fixed before the data. By default 2^(j/4) from 1.2e-4 to 11."
    )
    prior_groups: PriorGroups = option(
        PriorGroups.MODEL,
        "Which weights share one τ: all ('model'), modules of one name in every layer ('kind'), or those of a module "
        "('module'). Each τ is paid for.",
    )
    eta: float | None = option(
        None,
        "Inverse temperature η that shapes the noise, 1/s² = ηH + 1/τ²: a number, or 'n' for the number of examples. "
        "By default searched for, which is free.",
    )
    etas: list[float] | None = option(
        None, "Grid of η of the Hoeffding bounds, fixed before the data and paid for. By default made from n and δ."
    )
    parameters: list[str] | None = option(
        None, "Patterns of names ('classifier.*') of the weights that are certified. By default all trainable ones."
    )
    refine_steps: int = option(0, "Steps of gradient descent that refine the noise after it was shaped by the Hessian.")
    refine_mean: bool = option(True, "Let the refinement move the center of the noise too.")
    refine_learning_rate: float = option(0.05, "Its learning rate, in units of the noise's scale.")
    estimator: Estimator = option(Estimator.GAUSS_NEWTON, "Estimator of the Hessian diagonal that shapes the noise.")
    search_examples: int = option(2048, "Number of examples from which the curvature is estimated and η is searched.")
    max_examples: int | None = option(
        None, "Certify on at most this many examples: a seeded random subset of a dataset, the first of any other data."
    )
    gamma: float = option(0.1, "γ of the box γ|w_i| + ε, for uniform and truncated normal noise.")
    epsilon: float = option(0.1, "ε of that box.")
    assume_independent: bool = option(
        False,
        "Certify although some examples repeat or are packed, or the prior equals the trained weights: you vouch "
        "that the examples are independent of each other and of the prior.",
    )
    seed: int = option(0, "Seed of the noise and of the subset.")

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "bound", choice(Bound, self.bound, "bound"))
        set_field(self, "distribution", choice(NoiseDistribution, self.distribution, "distribution"))
        set_field(self, "prior_groups", choice(PriorGroups, self.prior_groups, "prior_groups"))
        set_field(self, "estimator", choice(Estimator, self.estimator, "estimator"))
        check_number(self, "delta", minimum=0, strict=True)
        if self.delta >= 1:
            raise ValueError(f"delta must be less than 1, the probability that the bound fails; got {self.delta}.")
        for name in ("draws", "search_examples"):
            check_number(self, name, minimum=1, integer=True)
        for name in ("refine_steps", "seed"):
            check_number(self, name, minimum=0, integer=True)
        check_number(self, "refine_learning_rate", minimum=0, strict=True)
        for name in ("refine_mean", "assume_independent"):
            check_flag(self, name)
        if self.max_examples is not None:
            check_number(self, "max_examples", minimum=1, integer=True)
        if self.eta is not None:
            set_field(self, "eta", inverse_temperature(self.eta))
        for name in ("gamma", "epsilon"):
            check_number(self, name, minimum=0)
        if self.epsilon == 0 and self.distribution is not NoiseDistribution.NORMAL:
            raise ValueError("epsilon is 0, so weights of 0 have no noise; make it positive, or use 'normal' noise.")
        for name in ("prior_scales", "etas"):
            set_field(self, name, positive_grid(name, getattr(self, name)))
        if self.etas is not None and self.bound is Bound.KL:
            raise ValueError("The kl bound has no eta to search; leave out etas, or take bound='hoeffding'.")
        if self.parameters is not None:
            names = [self.parameters] if isinstance(self.parameters, str) else list(self.parameters)
            if not names or not all(isinstance(name, str) for name in names):
                raise ValueError(f"parameters must be patterns of parameter names; got {self.parameters!r}.")
            set_field(self, "parameters", names)
