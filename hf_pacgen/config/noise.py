"""Settings of the noise in training."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hf_pacgen.config.settings import Config, check_flag, check_number, choice, inverse_temperature, option
from hf_pacgen.maths import noise_scale
from hf_pacgen.maths.distributions import NoiseDistribution
from hf_pacgen.maths.facts import Choice

__all__ = ["CurvatureSource", "NoiseConfig", "NoiseDraw", "NoiseShape"]


@dataclass(frozen=True)
class ShapeFacts:
    """What is known of a shape of the noise.

    Attributes:
        level: σ of some weights.  What else it takes, it names as the settings or the tracker of the curvature do.
        scale: by default.
        limit: the setting that ``scale`` may not exceed, where no formula keeps the noise in its box N_i.
    """

    level: Callable[..., Tensor]
    scale: float
    limit: str | None

    @property
    def takes(self) -> frozenset[str]:
        """The names of what the level depends on."""
        return frozenset(inspect.signature(self.level).parameters)


class NoiseShape(Choice):
    """How the level σ_i of the noise depends on the weight and its curvature."""

    facts: ShapeFacts

    PACGEN = "pacgen", ShapeFacts(noise_scale.optimal_noise_scale, 1.0, None)
    ARTICLE = "article", ShapeFacts(noise_scale.article_noise_scale, 0.05, None)
    MAGNITUDE = "magnitude", ShapeFacts(noise_scale.magnitude_noise_scale, 0.1, "gamma")
    ISOTROPIC = "isotropic", ShapeFacts(noise_scale.isotropic_noise_scale, 0.01, "epsilon")

    @property
    def uses_curvature(self) -> bool:
        """Whether a running curvature is needed."""
        return "hessian_diagonal" in self.facts.takes


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """Where a running curvature comes from (exactly one of the first three), and when.

    Attributes:
        from_products: of noise and gradient; the weights take turns.
        from_optimizer: from its second moments, which are no sums of our own.
        from_batches: from estimates of the whole diagonal on batches of the training data.
        every: optimizer steps between two samples of a weight, by default.
    """

    from_products: bool = False
    from_optimizer: bool = False
    from_batches: bool = False
    every: int

    def __post_init__(self) -> None:
        if self.from_products + self.from_optimizer + self.from_batches != 1:
            raise ValueError(f"A curvature comes from products, from the optimizer or from batches; got {self}.")


class CurvatureSource(Choice):
    """Where the running curvature h comes from during training."""

    facts: SourceFacts

    PRICE = "price", SourceFacts(from_products=True, every=4)
    ADAM = "adam", SourceFacts(from_optimizer=True, every=4)
    HUTCHINSON = "hutchinson", SourceFacts(from_batches=True, every=50)


class NoiseDraw(Choice):
    """How long one draw of the noise lasts; a member's facts say which draw of its step a micro-batch has."""

    facts: Callable[[int], int]

    MICRO_BATCH = "micro_batch", lambda micro_step: micro_step
    STEP = "step", lambda micro_step: 0


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
        outside = [kind for kind in NoiseDistribution if not kind.facts.stays_in_box()]
        set_field(self, "distribution", choice(NoiseDistribution, self.distribution, "distribution", without=outside))
        for name, kind in (("shape", NoiseShape), ("curvature", CurvatureSource), ("draw", NoiseDraw)):
            set_field(self, name, choice(kind, getattr(self, name), name))
        if self.distribution in outside:
            raise ValueError(
                f"distribution={self.distribution.value!r} leaves the box N_i in which the theory holds; use "
                "'truncated_normal' instead."
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
            set_field(self, "scale", self.shape.facts.scale)
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
            set_field(self, "curvature_every", self.curvature.facts.every)
        for name in ("curvature_every", "rho_every"):
            check_number(self, name, minimum=1, integer=True)
        check_number(self, "seed", minimum=0, integer=True)

    @property
    def is_silent(self) -> bool:
        """Whether there is no noise at all."""
        return self.scale == 0

    def _check_box(self) -> None:
        name = self.shape.facts.limit
        limit = math.inf if name is None else getattr(self, name)
        if self.scale is not None and self.scale > limit:
            raise ValueError(
                f"The noise is larger than the box N_i = gamma*|w_i| + epsilon: shape={self.shape.value!r} with "
                f"scale={self.scale} needs {name} of at least {self.scale}; got {limit}. "
                f"Lower scale, or raise {name}."
            )
