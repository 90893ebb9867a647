"""Settings of the measures of sharpness beside PACGen: one frozen dataclass for each concern."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hf_pacgen.config import HVPMethod
from hf_pacgen.noise.distributions import NoiseDistribution
from hf_pacgen.settings import Config, check_flag, check_number, choice, option

__all__ = ["SharpnessConfig", "SpectrumConfig", "SpectrumEnd"]


class SpectrumEnd(str, Enum):
    """Which eigenvalues are the top ones."""

    LARGEST = "largest"
    SMALLEST = "smallest"
    MAGNITUDE = "magnitude"


@dataclass(frozen=True, kw_only=True)
class SpectrumConfig(Config):
    """Settings of :func:`hf_pacgen.hessian_spectrum`.

    >>> SpectrumConfig(probes=0).to_dict()["which"]
    'largest'
    """

    which: SpectrumEnd = option(
        SpectrumEnd.LARGEST,
        "Which eigenvalues are wanted: the 'largest', the 'smallest' (most negative), or those of largest 'magnitude'.",
    )
    iterations: int | None = option(
        None,
        "Most Lanczos steps, each of which keeps a vector of the model's size. By default 300, less where they would "
        "take more than 2 GiB, and at least 2k + 20.",
    )
    tolerance: float = option(
        1e-4, "An eigenvalue has converged when its residual is at most this part of it, noise of the products aside."
    )
    probes: int = option(4, "Random probes for the trace and the spectral density; 0 leaves both out.")
    density_iterations: int = option(12, "Lanczos steps from every probe: nodes of the spectral density.")
    hvp: HVPMethod = option(HVPMethod.AUTO, "Hessian-vector product, as for the score.")
    displacement: float | None = option(None, "Norm of the displacement of a finite difference. By default controlled.")
    max_examples: int | None = option(
        None, "Use at most this many examples: a seeded random subset of a dataset, the first of any other data."
    )
    keep_vectors: bool = option(False, "Return the eigenvectors as well, k vectors of the model's size.")
    seed: int = option(0, "Seed of the start vectors, the probes and the subset.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "which", choice(SpectrumEnd, self.which, "which"))
        object.__setattr__(self, "hvp", choice(HVPMethod, self.hvp, "hvp"))
        check_number(self, "tolerance", minimum=0, strict=True)
        for name in ("iterations", "max_examples"):
            if getattr(self, name) is not None:
                check_number(self, name, minimum=1, integer=True)
        check_flag(self, "keep_vectors")
        check_number(self, "density_iterations", minimum=1, integer=True)
        for name in ("probes", "seed"):
            check_number(self, name, minimum=0, integer=True)
        if self.displacement is not None:
            check_number(self, "displacement", minimum=0, strict=True)


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
