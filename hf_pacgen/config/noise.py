"""Settings of the noise in training."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from torch import Tensor

from hf_pacgen.config.recipes import NoiseRecipe
from hf_pacgen.config.settings import Config, Count, NonNegative, Positive, Seed, Temperature, choice, number, option
from hf_pacgen.facts import Choice
from hf_pacgen.maths import noise_scale
from hf_pacgen.maths.distributions import NoiseDistribution


@dataclass(frozen=True)
class ShapeFacts:
    """What is known of a shape of the noise."""

    # σ of some weights; its other arguments are named as the settings are, or what the tracker of the curvature knows
    level: Callable[..., Tensor]
    scale: float  # by default, of random noise
    # what the scale of random noise may not exceed, where no formula keeps it in its box N_i: a setting or a number
    limit: str | float | None = None

    is_one_level: bool = False  # σ is the scale, whatever the weight

    @property
    def takes(self) -> frozenset[str]:
        """What the level depends on, by name."""
        return frozenset(inspect.signature(self.level).parameters)


class NoiseShape(Choice):
    """How the level σ_i of the noise depends on the weight and its curvature."""

    facts: ShapeFacts

    PACGEN = "pacgen", ShapeFacts(noise_scale.optimal_noise_scale, 1.0)
    ARTICLE = "article", ShapeFacts(noise_scale.article_noise_scale, 0.05)
    MAGNITUDE = "magnitude", ShapeFacts(noise_scale.magnitude_noise_scale, 0.1, "gamma")
    ISOTROPIC = "isotropic", ShapeFacts(noise_scale.isotropic_noise_scale, 0.01, "epsilon", is_one_level=True)
    BOX = "box", ShapeFacts(noise_scale.box_noise_scale, 1.0, 1.0)
    # outside of the theory of the box: a row has one level, that of a usual weight of it
    ROWS = "rows", ShapeFacts(noise_scale.row_noise_scale, 0.6)

    @property
    def uses_curvature(self) -> bool:
        """Whether a running curvature is needed."""
        return "hessian_diagonal" in self.facts.takes

    @property
    def uses_rows(self) -> bool:
        """Whether the root mean square of every row of the weights is needed."""
        return "row_rms" in self.facts.takes


@dataclass(frozen=True, kw_only=True)
class DirectionFacts:
    """Where a displacement goes: exactly one of these."""

    by_chance: bool = False
    from_last_step: bool = False  # its gradient, as the optimizer saw it
    from_own_gradient: bool = False  # that of the same micro-batch, which has a second one then

    def __post_init__(self) -> None:
        if self.by_chance + self.from_last_step + self.from_own_gradient != 1:
            raise ValueError(f"A direction is by chance, from the last step or from the own gradient; got {self}.")


class NoiseDirection(Choice):
    """Where the weights are moved, within the level σ_i that the shape gives each of them.

    Uphill, g being a gradient, u = σ² g/‖σ g‖: the step to the highest point of ⟨g, u⟩ where Σ u_i²/σ_i² ≤ 1.
    """

    facts: DirectionFacts

    RANDOM = "random", DirectionFacts(by_chance=True)
    PREVIOUS = "previous", DirectionFacts(from_last_step=True)
    GRADIENT = "gradient", DirectionFacts(from_own_gradient=True)


@dataclass(frozen=True)
class TargetFacts:
    """Which weights have noise."""

    trained: bool  # else those under the adapters, which are not


class NoiseTarget(Choice):
    """The weights that have noise."""

    facts: TargetFacts

    TRAINED = "trained", TargetFacts(True)
    FROZEN = "frozen", TargetFacts(False)


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


def _part(value: Any, name: str) -> float:
    found: float = number(value, name, minimum=0)
    if found >= 1:
        raise ValueError(f"{name} must be less than 1, which would be no noise at all; got {value!r}. Use scale=0.")
    return found


AUTO = "auto"  # the scale that follows the run


def _scale(value: Any, name: str) -> float | str:
    if isinstance(value, str) and value.strip().lower() == AUTO:
        return AUTO
    try:  # a parser of arguments has texts
        found = float(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{name} must be a number of at least 0, or 'auto'; got {value!r}.") from None
    return number(found, name, minimum=0)


Scale = Annotated[float | str, _scale]
Part = Annotated[float, _part]
InBox = Annotated[NoiseDistribution, _in_box]
Rho = Annotated[float | str, _rho]


@dataclass(frozen=True, kw_only=True)
class NoiseConfig(Config):
    """Settings of the noise in training: of :class:`hf_pacgen.PACGenTrainer` and :class:`hf_pacgen.PACGenCallback`.

    The level of the shape ``pacgen`` is σ_i = min(scale/sqrt(η(h_i/3 + ρ√m N_i/9)), N_i), N_i = γ|w_i| + ε, which
    minimizes the third-order PAC-Bayes bound at scale 1 (Wang et al. 2018, arXiv 1809.07402).

    A recipe is a set of settings: those that are None are its own, all can be given (``recipe="sam", scale=0.05``).
    With ``direction="previous"`` or ``"gradient"`` nothing is drawn: the weights go uphill, to w + u with
    u = σ² g/‖σ g‖, the norm over all trainable weights of all processes.  So with ``shape="isotropic"`` ``scale`` is
    the radius in the Euclidean norm (SAM); with "box" u = scale · N² g/‖N g‖, the ascent in the box of the PAC-Bayes
    bound; with "magnitude" that of ASAM.

    >>> NoiseConfig(shape="isotropic", scale=0.05).to_dict()["scale"]
    0.05
    """

    recipe: NoiseRecipe = option(
        NoiseRecipe.PACGEN,
        "A name for settings that are not given otherwise: "
        + ", ".join(repr(recipe.value) for recipe in NoiseRecipe)
        + ".",
    )
    distribution: InBox = option(
        NoiseDistribution.UNIFORM, "Noise: 'uniform' (half-width σ_i) or 'truncated_normal' (cut off at N_i)."
    )
    # None is for the recipe to fill in, as it does before any rule is applied
    shape: NoiseShape = option(
        None,
        "Level σ_i of the noise: 'pacgen' (optimal under the bound), 'article' (scale/sqrt(h_i + ρN_i), cut off at "
        "N_i), 'magnitude' (scale·|w_i|), 'isotropic' (scale), 'box' (scale·N_i) or 'rows' (scale times the root mean "
        "square of the weight's row). By default the recipe's.",
    )
    direction: NoiseDirection = option(
        None,
        "'random' noise, or uphill: along the 'previous' step's gradient, or along the micro-batch's own 'gradient' "
        "(twice the gradients; Trainer only). By default the recipe's.",
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
    scale: Scale | None = option(
        None,
        "Factor of the level, 0 for none, or 'auto': from 0 to max_scale, as the run goes. By default the recipe's, or "
        "the shape's: 1, for 'article' 0.05, 'magnitude' 0.1, 'isotropic' 0.01, 'rows' 0.6.",
    )
    max_scale: NonNegative | None = option(None, "The largest factor of scale='auto'. By default that of the recipe.")
    antithetic: bool = option(
        None,
        "Average the gradients at w + u and w - u (twice the gradients; Trainer only). By default the recipe's.",
    )
    clean_part: Part = option(
        None,
        "Part of every gradient that is taken at w, the rest at w + u (twice the gradients; Trainer only). By default "
        "the recipe's.",
    )
    consistency: NonNegative = option(
        None,
        "Weight of the symmetric KL divergence between the outputs at w + u and w - u, which is added to the loss "
        "(asks for antithetic=True; a forward pass more). By default the recipe's.",
    )
    target: NoiseTarget = option(
        None,
        "The weights with noise: those that are 'trained', or the 'frozen' ones under LoRA adapters, where scale is "
        "the standard deviation in units of the root mean square of the merged weight's row. By default the recipe's.",
    )
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
        self._fill_in()
        super().__post_init__()
        if self.warmup_ratio + self.decay_ratio > 1:
            ratios = f"{self.warmup_ratio} + {self.decay_ratio}"
            raise ValueError(f"warmup_ratio + decay_ratio must be at most 1, the whole training; got {ratios}.")
        if self.curvature_decay > 1:
            raise ValueError(f"curvature_decay must be at most 1 (a plain mean); got {self.curvature_decay}.")
        # stored, so that a run's settings say what it did even if a default changes
        if self.scale is None:
            object.__setattr__(self, "scale", self._default_scale())
        if self.follows_run and self.max_scale is None:
            object.__setattr__(self, "max_scale", self._default_scale())
        if not self.follows_run and self.max_scale is not None:
            raise ValueError(
                f"max_scale={self.max_scale} is the largest factor of scale='auto'; got scale={self.scale}. Give one "
                "of them."
            )
        if self.curvature_every is None:
            object.__setattr__(self, "curvature_every", self.curvature.facts.every)
        refuse_what_does_not_go_together(self)

    def _fill_in(self) -> None:
        """Let the recipe say what was not given."""
        recipe = choice(NoiseRecipe, self.recipe, "recipe")
        own_shape = self.shape is None or self.shape == recipe.facts.fields["shape"]
        fields = recipe.facts.fields
        if self.scale == AUTO:  # up to what the recipe has all along
            fields = {"max_scale": fields.get("scale")} | fields
        elif self.scale is not None:
            fields.pop("max_scale", None)
        for name, value in fields.items():
            # the scales are of the recipe's shape
            if getattr(self, name) is None and (name not in ("scale", "max_scale") or own_shape):
                object.__setattr__(self, name, value)

    def _default_scale(self) -> float:
        if self.direction.facts.by_chance:
            return self.shape.facts.scale
        raise ValueError(
            f"The radius of an ascent (direction={self.direction.value!r}) in the shape {self.shape.value!r} has no "
            f"default. Set {'max_scale' if self.follows_run else 'scale'}, the largest sqrt(Σ u_i²/σ_i²) with σ the "
            "level at scale 1; 0.15 is one for shape='isotropic'."
        )

    @classmethod
    def short_names(cls) -> dict[str, Callable[[], NoiseConfig]]:
        """The recipes."""
        return {recipe.value: partial(cls, recipe=recipe) for recipe in NoiseRecipe}

    @property
    def is_silent(self) -> bool:
        """Whether there is no noise at all."""
        return self.largest_scale == 0

    @property
    def follows_run(self) -> bool:
        """Whether the noise is made larger and smaller as the run goes."""
        return self.scale == AUTO

    @property
    def largest_scale(self) -> float:
        """The factor of the level at its largest."""
        largest = self.max_scale if self.follows_run else self.scale
        return float(largest or 0.0)

    @property
    def second_gradient(self) -> str | None:
        """The setting for which every micro-batch has two gradients; None where one is enough."""
        asks = {
            "antithetic=True": self.antithetic,
            f"clean_part={self.clean_part}": self.clean_part > 0,
            f"direction={self.direction.value!r}": self.direction.facts.from_own_gradient,
        }
        return next((setting for setting, asked in asks.items() if asked), None)

    @property
    def samples_curvature(self) -> bool:
        """Whether a running curvature is made of products of noise and gradient."""
        return self.shape.uses_curvature and self.curvature.facts.from_products


def refuse_what_does_not_go_together(config: NoiseConfig) -> None:
    """Raise a ValueError that names two settings of which one has to go."""
    uphill = None if config.direction.facts.by_chance else f"direction={config.direction.value!r}"
    clean = f"clean_part={config.clean_part}" if config.clean_part else None
    price = f"the curvature 'price', which shape={config.shape.value!r} asks for," if config.samples_curvature else None
    pairs = "antithetic=True" if config.antithetic else None
    remedy = "Take curvature='adam', or a shape without curvature, such as 'rows' or 'isotropic'."
    consistent = f"consistency={config.consistency}" if config.consistency else None
    why_pairs = "the outputs of a pair are pulled together"
    law = config.distribution
    odd_law = None if law is NoiseDistribution.UNIFORM else f"distribution={law.value!r}"
    conflicts = [
        (uphill, pairs, "of a pair one half would go downhill", "Use antithetic=False."),
        (
            None if config.target.facts.trained else f"target={config.target.value!r}",
            uphill or (None if config.shape.uses_rows else f"shape={config.shape.value!r}"),
            "frozen weights have no gradient, and noise by rows only",
            "Use direction='random' and shape='rows', or target='trained'.",
        ),
        (
            None if config.target.facts.trained else f"target={config.target.value!r}",
            odd_law,
            "it is drawn in the products themselves, as uniform noise",
            "Leave distribution away.",
        ),
        (consistent, None if config.antithetic else "antithetic=False", why_pairs, "Use antithetic=True."),
        (consistent, price, "is told by the gradient of the loss alone", remedy),
        (uphill, clean, "sam's first gradient is no part of its second", "Use clean_part=0."),
        (clean, pairs, "that would be three gradients", "Use one of them."),
        (uphill, price, "is told by random noise only", remedy),
        (clean, price, "is told by gradients at noisy weights only", remedy),
        (uphill, odd_law, "an ascent draws nothing", "Leave distribution away."),
        (
            "draw='step'" if config.draw is NoiseDraw.STEP else None,
            uphill if config.direction.facts.from_own_gradient else None,
            "every micro-batch ascends along its own gradient",
            "Use draw='micro_batch', or direction='previous', which is one for a step.",
        ),
    ]
    for first, second, why, what_to_do in conflicts:
        if first is not None and second is not None:
            raise ValueError(f"{first} and {second} do not go together: {why}. {what_to_do}")
    # no weight may leave the box in which ρ bounds the change of the Hessian
    limit = config.shape.facts.limit
    if limit is None or uphill is not None:
        return
    largest, scale = getattr(config, limit) if isinstance(limit, str) else limit, config.largest_scale
    if scale > largest:
        name = "max_scale" if config.follows_run else "scale"
        problem = f"shape={config.shape.value!r} with {name}={scale:g}"
        if isinstance(limit, str):
            problem += f" needs {limit} of at least {scale:g}; got {largest}. Lower {name}, or raise {limit}."
        else:
            problem += f"; expected at most {largest}. Lower {name}, or raise gamma or epsilon."
        raise ValueError(f"The noise is larger than the box N_i = gamma*|w_i| + epsilon: {problem}")
