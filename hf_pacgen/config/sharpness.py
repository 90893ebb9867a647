"""Settings of both sharpnesses."""

from __future__ import annotations

from dataclasses import dataclass

from hf_pacgen.config.settings import Config, check_flag, check_number, choice, option
from hf_pacgen.maths.distributions import NoiseDistribution

__all__ = ["SharpnessConfig"]


@dataclass(frozen=True, kw_only=True)
class SharpnessConfig(Config):
    """Settings of :func:`hf_pacgen.expected_sharpness` and :func:`hf_pacgen.worst_case_sharpness`.

    >>> SharpnessConfig(distribution="gaussian").distribution.value
    'normal'
    """

    distribution: NoiseDistribution = option(
        NoiseDistribution.NORMAL,
        "Noise of the weights: 'normal' (also called 'gaussian'; noise_scale is its standard deviation), 'uniform' "
        "(its half-width), or 'truncated_normal' (to the box γ|w_i| + ε).",
    )
    antithetic: bool = option(True, "Average the losses at w + u and w - u, which removes the slope from the noise.")
    draws: int = option(64, "Most draws of the noise for every batch: each batch has draws of its own.")
    tolerance: float = option(
        0.05, "Stop drawing when the standard error is at most this part of the mean; 0 takes all draws."
    )
    gamma: float = option(0.1, "γ of the box γ|w_i| + ε to which 'truncated_normal' is truncated.")
    epsilon: float = option(0.1, "ε of that box.")
    ascent_steps: int = option(20, "Worst case: most gradients of the whole loss in the ascent from each start.")
    ascent_starts: int = option(2, "Worst case: starts of the ascent; the first at w, the others random in the box.")
    max_examples: int | None = option(
        None, "Use at most this many examples: a seeded random subset of a dataset, the first of any other data."
    )
    seed: int = option(0, "Seed of the noise, of the random starts and of the subset.")

    def __post_init__(self) -> None:
        name = "normal" if self.distribution == "gaussian" else self.distribution
        object.__setattr__(self, "distribution", choice(NoiseDistribution, name, "distribution"))
        for name in ("tolerance", "gamma", "epsilon"):
            check_number(self, name, minimum=0)
        check_flag(self, "antithetic")
        for name in ("draws", "ascent_steps", "ascent_starts"):
            check_number(self, name, minimum=1, integer=True)
        if self.max_examples is not None:
            check_number(self, "max_examples", minimum=1, integer=True)
        check_number(self, "seed", minimum=0, integer=True)
