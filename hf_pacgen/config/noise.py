"""Settings of the noise in training."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from hf_pacgen.config.settings import Config, Count, NonNegative, Positive, Seed, Temperature, choice, number, option
from hf_pacgen.facts import Choice
from hf_pacgen.maths import noise_scale
from hf_pacgen.maths.distributions import NoiseDistribution


@dataclass(frozen=True)
class ShapeFacts:
    """What is known of a shape of the noise."""

    # σ of some weights; its other arguments are named as the settings are, or what the tracker of the curvature knows
    level: Callable[..., Tensor]
    scale: float  # by default
    limit: str | None  # the setting that scale may not exceed, where no formula keeps the noise in its box N_i

    @property
    def takes(self) -> frozenset[str]:
        """What the level depends on, by name."""
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
    """Where a running curvature comes from (exactly one of the first three), and when."""

    from_products: bool = False  # of noise and gradient; the weights take turns
    from_optimizer: bool = False  # its second moments, which are no sums of our own
    from_batches: bool = False  # estimates of the whole diagonal on batches of the training data
    every: int  # optimizer steps between two samples of a weight, by default

    def __post_init__(self) -> None:
        if self.from_products + self.from_optimizer + self.from_batches != 1:
            raise ValueError(f"A curvature comes from products, from the optimizer or from batches; got {self}.")


class CurvatureSource(Choice):
    """Where the running curvature h comes from during training."""

    facts: SourceFacts

    PRICE = "price", SourceFacts(from_products=True, every=4)
    ADAM = "adam", SourceFacts(from_optimizer=True, every=4)
    # each sample costs as much as a gradient or two, so they are rare
    HUTCHINSON = "hutchinson", SourceFacts(from_batches=True, every=50)


class NoiseDraw(Choice):
    """How long one draw of the noise lasts; a member's facts say which draw of its step a micro-batch has."""

    facts: Callable[[int], int]

    # more draws average more noise out of the gradient; one lets the noise stand still in an optimizer step
    MICRO_BATCH = "micro_batch", lambda micro_step: micro_step
    STEP = "step", lambda micro_step: 0


def _in_box(value: Any, name: str) -> NoiseDistribution:
    # asked anew each time: a distribution says for itself whether it stays inside
    outside = [kind for kind in NoiseDistribution if not kind.facts.stays_in_box()]
    found = choice(NoiseDistribution, value, name, without=outside)
    if found in outside:
        raise ValueError(
            f"{name}={found.value!r} leaves the box N_i in which the theory holds; use 'truncated_normal' instead."
        )
    return found


def _rho(value: Any, name: str) -> float | str:
    if isinstance(value, str) and value != "estimate":
        raise ValueError(f"{name} must be a number >= 0 or 'estimate'; got {value!r}.")
    return value if value == "estimate" else number(value, name, minimum=0)


InBox = Annotated[NoiseDistribution, _in_box]
Rho = Annotated[float | str, _rho]


@dataclass(frozen=True, kw_only=True)
class NoiseConfig(Config):
    """Settings of the noise in training: of :class:`hf_pacgen.PACGenTrainer` and :class:`hf_pacgen.PACGenCallback`.

    The level of the shape ``pacgen`` is σ_i = min(scale/sqrt(η(h_i/3 + ρ√m N_i/9)), N_i), N_i = γ|w_i| + ε, which
    minimizes the third-order PAC-Bayes bound at scale 1 (Wang et al. 2018, arXiv 1809.07402).

    >>> NoiseConfig(shape="isotropic", scale=0.05).to_dict()["scale"]
    0.05
    """

    distribution: InBox = option(
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
    gamma: NonNegative = option(0.1, "γ of N_i = γ|w_i| + ε, which no noise exceeds.")
    epsilon: NonNegative = option(0.1, "ε of N_i, the level of the noise where there is no curvature.")
    eta: Temperature = option("n", "η, the inverse temperature: a positive number, or 'n', the training examples.")
    rho: Rho = option(0.0, "ρ, the Lipschitz constant of the Hessian: a number, or 'estimate'.")
    scale: NonNegative | None = option(
        None, "Factor of the level, 0 for none. By default 1, for 'article' 0.05, 'magnitude' 0.1, 'isotropic' 0.01."
    )
    antithetic: bool = option(False, "Average the gradients at w + u and w - u (twice the gradients; Trainer only).")
    draw: NoiseDraw = option(NoiseDraw.MICRO_BATCH, "New noise for every 'micro_batch', or once an optimizer 'step'.")
    warmup_ratio: NonNegative = option(0.0, "Part of the training over which the noise rises linearly from 0.")
    decay_ratio: NonNegative = option(0.0, "Part of the training, at its end, over which it falls linearly to 0.")
    curvature_decay: Positive = option(0.99, "Factor by which older samples of the curvature fade with each new one.")
    curvature_every: Count | None = option(
        None, "Optimizer steps between samples of a weight's curvature. By default 4 for 'price', 50 for 'hutchinson'."
    )
    rho_every: Count = option(200, "Optimizer steps between estimates of ρ.")
    seed: Seed = option(0, "Seed of the noise.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_ratio + self.decay_ratio > 1:
            ratios = f"{self.warmup_ratio} + {self.decay_ratio}"
            raise ValueError(f"warmup_ratio + decay_ratio must be at most 1, the whole training; got {ratios}.")
        if self.curvature_decay > 1:
            raise ValueError(f"curvature_decay must be at most 1 (a plain mean); got {self.curvature_decay}.")
        # stored, so that a run's settings say what it did even if a default changes
        if self.scale is None:
            object.__setattr__(self, "scale", self.shape.facts.scale)
        if self.curvature_every is None:
            object.__setattr__(self, "curvature_every", self.curvature.facts.every)
        # no weight may leave the box in which ρ bounds the change of the Hessian
        name = self.shape.facts.limit
        limit = math.inf if name is None else getattr(self, name)
        if self.scale is not None and self.scale > limit:
            raise ValueError(
                f"The noise is larger than the box N_i = gamma*|w_i| + epsilon: shape={self.shape.value!r} with "
                f"scale={self.scale} needs {name} of at least {self.scale}; got {limit}. "
                f"Lower scale, or raise {name}."
            )

    @property
    def is_silent(self) -> bool:
        """Whether there is no noise at all."""
        return self.scale == 0
