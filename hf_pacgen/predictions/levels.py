"""The level of the noise on every weight, from one number."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from hf_pacgen.config import NoiseConfig
from hf_pacgen.config.prediction import AUTO
from hf_pacgen.maths.distributions import NoiseDistribution
from hf_pacgen.maths.noise_scale import row_noise_scale
from hf_pacgen.model.state import unwrap
from hf_pacgen.model.storage import independent
from hf_pacgen.noise.perturbation import Perturbation, ScaleFunction
from hf_pacgen.noise.perturbed import check_scale
from hf_pacgen.noise.rows import RowLevels

__all__ = ["Noise", "noise_of"]


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """Noise of one shape, of any size.

    Attributes:
        scale: its size, in units of each row's root mean square where there is no ``config``.
        config: of another shape.
    """

    scale: float
    config: NoiseConfig | None = None

    @property
    def is_silent(self) -> bool:
        """Whether there is none."""
        return self.scale == 0

    @contextmanager
    def on(self, model: nn.Module, seed: int, *, mirrored: bool = False) -> Iterator[None]:
        """The model with one draw u on its trainable weights, ``mirrored`` with -u.

        They are back bit for bit on the way out, however that is.
        """
        bare, config = unwrap(model), self.config
        parameters = independent({name: p for name, p in bare.named_parameters() if p.requires_grad})
        if not parameters:
            raise ValueError(
                f"{type(bare).__name__} has no trainable parameters, so there is nothing to perturb: expected at least "
                "one with requires_grad=True. Unfreeze what was trained, or give noise_scale=0."
            )
        how: Any = {"distribution": NoiseDistribution.UNIFORM}
        if config is not None:
            how = {"distribution": config.distribution, "gamma": config.gamma, "epsilon": config.epsilon}
        noise = Perturbation(parameters, model=bare, **how)
        noise.draw(self._level(noise), seed, "perturbed")
        if mirrored:
            noise.mirror()
        try:
            noise.apply()
            yield
        finally:
            noise.restore()

    def _level(self, noise: Perturbation) -> ScaleFunction:
        config = self.config
        if config is None or config.shape.uses_rows:
            rows = RowLevels(noise, partial(row_noise_scale, scale=self.scale))
            rows.read()
            return lambda block, weights: rows.of(block)
        facts = config.shape.facts
        settings = {"scale": self.scale, "gamma": config.gamma, "epsilon": config.epsilon}
        known = {name: value for name, value in settings.items() if name in facts.takes}
        return lambda block, weights: facts.level(weights, **known)

    def to_dict(self) -> dict[str, Any]:
        """In words that JSON knows."""
        if self.config is None:
            return {"shape": "rows", "scale": self.scale, "distribution": "uniform"}
        return self.config.to_dict()


def noise_of(noise_scale: Any) -> Noise | None:
    """The noise that a number or a configuration stands for; None for "auto".

    Raises:
        ValueError: another word, a negative or infinite number, a shape that needs a curvature.
    """
    if isinstance(noise_scale, NoiseConfig):
        shape, direction, target = noise_scale.shape, noise_scale.direction, noise_scale.target
        if shape.uses_curvature:
            raise ValueError(
                f"noise_scale has shape={shape.value!r}, whose level follows a curvature that is known in training "
                "only: expected a shape of the weights alone. Give NoiseConfig(shape='magnitude' or 'isotropic'), or a "
                "number for row-scaled noise."
            )
        if not direction.facts.by_chance or not target.facts.trained:
            raise ValueError(
                f"noise_scale has direction={direction.value!r} and target={target.value!r}: predictions are averaged "
                "over random noise on the trainable weights. Give NoiseConfig(recipe='rows', scale=0.3), or a number."
            )
        if noise_scale.follows_run:
            raise ValueError(
                "noise_scale has scale='auto', which follows the losses of a training: predictions have none to "
                "follow. Give NoiseConfig(..., scale=0.3), a number, or noise_scale='auto' with training data."
            )
        return Noise(noise_scale.largest_scale, noise_scale)
    if isinstance(noise_scale, str):
        if noise_scale != AUTO:
            raise ValueError(f"noise_scale must be a number >= 0, a NoiseConfig or 'auto'; got {noise_scale!r}.")
        return None
    if not isinstance(noise_scale, numbers.Real) or isinstance(noise_scale, bool):
        raise ValueError(
            f"noise_scale must be a number >= 0 (in units of each row's root mean square), a NoiseConfig or 'auto'; "
            f"got {type(noise_scale).__name__}."
        )
    check_scale("noise_scale", float(noise_scale), {})
    return Noise(float(noise_scale))
