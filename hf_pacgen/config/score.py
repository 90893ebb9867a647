"""Settings of the score."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hf_pacgen.config.settings import (
    Config,
    check_flag,
    check_number,
    choice,
    inverse_temperature,
    option,
)

__all__ = ["Estimator", "HVPMethod", "ScoreConfig"]


class Estimator(str, Enum):
    """How the Hessian diagonal is estimated."""

    BLEND = "blend"
    HUTCHINSON = "hutchinson"
    GAUSS_NEWTON = "gauss_newton"
    EXACT = "exact"

    @property
    def samples_labels(self) -> bool:
        """Whether labels are drawn from the model's own predictions."""
        return self in (Estimator.BLEND, Estimator.GAUSS_NEWTON)


class HVPMethod(str, Enum):
    """How a Hessian-vector product is computed."""

    AUTO = "auto"
    REVERSE_OVER_REVERSE = "reverse_over_reverse"
    FORWARD_OVER_REVERSE = "forward_over_reverse"
    FINITE_DIFFERENCE = "finite_difference"


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Config):
    """Settings of :func:`hf_pacgen.pacgen`.

    ``gamma`` and ``epsilon`` are γ and ε of N_i = γ|w_i| + ε, ``eta`` is η of K(η)
    (Wang et al. 2018, arXiv 1809.07402).

    >>> ScoreConfig(estimator="hutchinson", passes=4).to_dict()["estimator"]
    'hutchinson'
    """

    gamma: float = option(0.1, "γ of the neighborhood N_i = γ|w_i| + ε in which the Hessian's smoothness is measured.")
    epsilon: float = option(0.1, "ε of the neighborhood N_i = γ|w_i| + ε.")
    eta: float | str = option("n", "η of K(η): a positive number, or 'n' for the size of the training set.")
    estimator: Estimator | str = option(
        Estimator.BLEND,
        "Estimator of the Hessian diagonal: 'blend' (Gauss-Newton corrected by Hutchinson where that is significant), "
        "'hutchinson' (unbiased, noisy), 'gauss_newton' (quiet, one gradient a batch, biased), 'exact' (small models).",
    )
    hvp: HVPMethod | str = option(
        HVPMethod.AUTO,
        "Hessian-vector product: 'auto' takes finite differences of gradients where weights and compute are "
        "float32, and reverse_over_reverse (the derivative of the gradient) otherwise.",
    )
    passes: int = option(1, "Number of times the estimator goes over the data, each time with new probes.")
    lipschitz_directions: int = option(
        2, "Number of random displacements u from which ρ is estimated; 0 takes ρ from --rho instead."
    )
    lipschitz_iterations: int = option(3, "Lanczos steps for the norm of H(w+u) - H(w), for each displacement u.")
    lipschitz_batches: int = option(1, "Number of batches on which ρ is estimated.")
    rho: float = option(0.0, "ρ, the Lipschitz constant of the Hessian; used when lipschitz_directions is 0.")
    max_examples: int | None = option(
        None, "Score at most this many examples: a seeded random subset of a dataset, the first of any other data."
    )
    num_training_examples: int | None = option(
        None, "Size of the training set, for eta='n'. By default the number of examples in the data given."
    )
    standard_error: bool = option(
        False, "Keep the standard error of every entry of the Hessian diagonal (one more parameter-sized buffer)."
    )
    displacement: float | None = option(
        None,
        "Norm of the displacement ‖h z‖ of a finite difference. By default a fraction of ‖w‖ that suits the dtype.",
    )
    seed: int = option(0, "Seed of the probes, the sampled labels, the displacements u and the subset.")

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "estimator", choice(Estimator, self.estimator, "estimator"))
        set_field(self, "hvp", choice(HVPMethod, self.hvp, "hvp"))
        set_field(self, "eta", inverse_temperature(self.eta))
        for name in ("gamma", "epsilon", "rho"):
            check_number(self, name, minimum=0)
        if self.gamma == 0 and self.epsilon == 0:
            raise ValueError(
                "gamma and epsilon are both 0, so every neighborhood N_i = gamma*|w_i| + epsilon is empty; "
                "make at least one of them positive."
            )
        check_number(self, "passes", minimum=1, integer=True)
        check_number(self, "lipschitz_directions", minimum=0, integer=True)
        for name in ("lipschitz_iterations", "lipschitz_batches"):
            check_number(self, name, minimum=1, integer=True)
        for name in ("max_examples", "num_training_examples"):
            if getattr(self, name) is not None:
                check_number(self, name, minimum=1, integer=True)
        check_flag(self, "standard_error")
        if self.displacement is not None:
            check_number(self, "displacement", minimum=0, strict=True)
        check_number(self, "seed", minimum=0, integer=True)
        if self.rho and self.lipschitz_directions:
            raise ValueError(
                f"rho={self.rho} was given together with lipschitz_directions={self.lipschitz_directions}; "
                "set lipschitz_directions=0 to use your rho, or leave rho at 0 to have it estimated."
            )
