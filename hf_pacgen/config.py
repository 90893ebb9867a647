"""Settings: one frozen, keyword-only dataclass per concern.

Every field carries its help text (the command line shows the same words), and
every check on a value happens in ``__post_init__``, so that a settings object
that exists is a valid one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from hf_pacgen.bounds.certified import Bound
from hf_pacgen.noise.distributions import NoiseDistribution
from hf_pacgen.settings import Config, check_flag, check_number, choice, inverse_temperature, option, positive_grid

__all__ = [
    "CertificateConfig",
    "CurvatureSource",
    "Estimator",
    "HVPMethod",
    "NoiseConfig",
    "NoiseDraw",
    "NoiseShape",
    "PriorGroups",
    "ScoreConfig",
]


class Estimator(str, Enum):
    """How the Hessian diagonal is estimated."""

    BLEND = "blend"
    HUTCHINSON = "hutchinson"
    GAUSS_NEWTON = "gauss_newton"
    EXACT = "exact"


class HVPMethod(str, Enum):
    """How a Hessian-vector product is computed."""

    AUTO = "auto"
    REVERSE_OVER_REVERSE = "reverse_over_reverse"
    FORWARD_OVER_REVERSE = "forward_over_reverse"
    FINITE_DIFFERENCE = "finite_difference"


class PriorGroups(str, Enum):
    """Which weights share one scale τ of the prior."""

    MODEL = "model"
    KIND = "kind"
    MODULE = "module"


class NoiseShape(str, Enum):
    """How the level σ_i of the noise depends on the weight and its curvature."""

    PACGEN = "pacgen"
    ARTICLE = "article"
    MAGNITUDE = "magnitude"
    ISOTROPIC = "isotropic"

    @property
    def uses_curvature(self) -> bool:
        """Whether a running curvature is needed."""
        return self in (NoiseShape.PACGEN, NoiseShape.ARTICLE)


class CurvatureSource(str, Enum):
    """Where the running curvature h comes from during training."""

    PRICE = "price"
    ADAM = "adam"
    HUTCHINSON = "hutchinson"


class NoiseDraw(str, Enum):
    """How long one draw of the noise lasts."""

    MICRO_BATCH = "micro_batch"
    STEP = "step"


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


DEFAULT_SCALES = {
    NoiseShape.PACGEN: 1.0,
    NoiseShape.ARTICLE: 0.05,
    NoiseShape.MAGNITUDE: 0.1,
    NoiseShape.ISOTROPIC: 0.01,
}


@dataclass(frozen=True, kw_only=True)
class NoiseConfig(Config):
    """Settings of the noise in training: of :class:`hf_pacgen.PACGenTrainer` and :class:`hf_pacgen.PACGenCallback`.

    The level of the shape ``pacgen`` is σ_i = min(scale/sqrt(η(h_i/3 + ρ√m N_i/9)), N_i), N_i = γ|w_i| + ε, which
    minimizes the third-order PAC-Bayes bound at scale 1 (Wang et al. 2018, arXiv 1809.07402).

    >>> NoiseConfig(shape="isotropic", scale=0.05).to_dict()["scale"]
    0.05
    """

    distribution: NoiseDistribution = option(
        NoiseDistribution.UNIFORM, "Noise: 'uniform' (half-width σ_i) or 'truncated_normal' (cut off at N_i)."
    )
    shape: NoiseShape = option(
        NoiseShape.PACGEN,
        "Level σ_i of the noise: 'pacgen' (optimal under the bound), 'article' (scale/sqrt(h_i + ρN_i), cut off at "
        "N_i), 'magnitude' (scale·|w_i|) or 'isotropic' (scale).",
    )
    curvature: CurvatureSource = option(
        CurvatureSource.PRICE,
        "Source of the curvature h: 'price' (from the noise and the gradient, no extra backward pass), 'adam' (the "
        "optimizer's exp_avg_sq) or 'hutchinson' (a Hessian-vector product on a batch now and then).",
    )
    gamma: float = option(0.1, "γ of N_i = γ|w_i| + ε, which no noise exceeds.")
    epsilon: float = option(0.1, "ε of N_i, the level of the noise where there is no curvature.")
    eta: float | str = option("n", "η, the inverse temperature: a positive number, or 'n', the training examples.")
    rho: float | str = option(0.0, "ρ, the Lipschitz constant of the Hessian: a number, or 'estimate'.")
    scale: float | None = option(
        None,
        "Factor of the level, 0 for no noise. By default 1 for 'pacgen', 0.05 for 'article', 0.1 for 'magnitude' and "
        "0.01 for 'isotropic'.",
    )
    antithetic: bool = option(False, "Average the gradients at w + u and w - u (twice the gradients; Trainer only).")
    draw: NoiseDraw = option(
        NoiseDraw.MICRO_BATCH, "Draw new noise for every 'micro_batch', or once for an optimizer 'step'."
    )
    warmup_ratio: float = option(0.0, "Part of the training over which the noise rises linearly from 0.")
    decay_ratio: float = option(0.0, "Part of the training, at its end, over which the noise falls linearly to 0.")
    curvature_decay: float = option(0.99, "Factor by which older samples of the curvature fade with each new one.")
    curvature_every: int | None = option(
        None,
        "Sample the curvature of a weight every so many optimizer steps. By default 4 for 'price' (a quarter of the "
        "weights in each step) and 50 for 'hutchinson'.",
    )
    rho_every: int = option(200, "Optimizer steps between estimates of ρ.")
    seed: int = option(0, "Seed of the noise.")

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        normal = NoiseDistribution.NORMAL
        set_field(self, "distribution", choice(NoiseDistribution, self.distribution, "distribution", without=normal))
        for name, kind in (
            ("shape", NoiseShape),
            ("curvature", CurvatureSource),
            ("draw", NoiseDraw),
        ):
            set_field(self, name, choice(kind, getattr(self, name), name))
        if self.distribution is normal:
            raise ValueError(
                "distribution='normal' leaves the box N_i in which the theory holds; use 'truncated_normal' instead."
            )
        set_field(self, "eta", inverse_temperature(self.eta))
        for name in ("gamma", "epsilon", "warmup_ratio", "decay_ratio"):
            check_number(self, name, minimum=0)
        if self.warmup_ratio + self.decay_ratio > 1:
            raise ValueError(
                f"warmup_ratio + decay_ratio must be at most 1, the whole training; got {self.warmup_ratio} + "
                f"{self.decay_ratio}."
            )
        if self.scale is None:
            set_field(self, "scale", DEFAULT_SCALES[self.shape])
        check_number(self, "scale", minimum=0)
        self._check_box()
        check_flag(self, "antithetic")
        if self.rho != "estimate":
            if isinstance(self.rho, str):
                raise ValueError(f"rho must be a number >= 0 or 'estimate'; got {self.rho!r}.")
            check_number(self, "rho", minimum=0)
        check_number(self, "curvature_decay", minimum=0, strict=True)
        if self.curvature_decay > 1:
            raise ValueError(f"curvature_decay must be at most 1 (a plain mean); got {self.curvature_decay}.")
        if self.curvature_every is None:
            set_field(self, "curvature_every", 50 if self.curvature is CurvatureSource.HUTCHINSON else 4)
        for name in ("curvature_every", "rho_every"):
            check_number(self, name, minimum=1, integer=True)
        check_number(self, "seed", minimum=0, integer=True)

    @property
    def is_silent(self) -> bool:
        """Whether there is no noise at all."""
        return self.scale == 0

    def _check_box(self) -> None:
        # the other shapes are cut off at N_i; these would leave the box where N_i is smallest for them
        limits = {NoiseShape.ISOTROPIC: ("epsilon", self.epsilon), NoiseShape.MAGNITUDE: ("gamma", self.gamma)}
        name, limit = limits.get(self.shape, ("", math.inf))
        if self.scale is not None and self.scale > limit:
            raise ValueError(
                f"The noise is larger than the box N_i = gamma*|w_i| + epsilon: shape={self.shape.value!r} with "
                f"scale={self.scale} needs {name} of at least {self.scale}; got {limit}. "
                f"Lower scale, or raise {name}."
            )
