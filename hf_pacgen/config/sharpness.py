"""Settings of the sharpnesses."""

from __future__ import annotations

from dataclasses import dataclass

from hf_pacgen.config.settings import SUBSET, Config, Count, NonNegative, Seed, option
from hf_pacgen.maths.distributions import NoiseDistribution


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
    draws: Count = option(64, "Most draws of the noise for every batch: each batch has draws of its own.")
    tolerance: NonNegative = option(
        0.05, "Stop drawing when the standard error is at most this part of the mean; 0 takes all draws."
    )
    gamma: NonNegative = option(0.1, "γ of the box γ|w_i| + ε to which 'truncated_normal' is truncated.")
    epsilon: NonNegative = option(0.1, "ε of that box.")
    ascent_steps: Count = option(20, "Worst case: most gradients of the whole loss from each start.")
    ascent_starts: Count = option(2, "Worst case: starts of the ascent; the first at w, the others random.")
    max_examples: Count | None = option(None, SUBSET)
    seed: Seed = option(0, "Seed of the noise, of the random starts and of the subset.")

    def __post_init__(self) -> None:
        # both names are common; one is stored
        if self.distribution == "gaussian":
            object.__setattr__(self, "distribution", NoiseDistribution.NORMAL)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class RelativeSharpnessConfig(Config):
    """Settings of :func:`hf_pacgen.relative_sharpness`.

    >>> RelativeSharpnessConfig(draws=2).draws
    2
    """

    draws: Count | None = option(
        None,
        "Antithetic pairs ±z for every batch. By default one on a random quarter of the batches; more where there are "
        "under 32 batches.",
    )
    max_examples: Count | None = option(None, SUBSET)
    seed: Seed = option(0, "Seed of the noise, of which batches have it, and of the subset.")
