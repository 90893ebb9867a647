"""The level of the noise on every weight, from one number."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_pacgen.config import NoiseConfig
from hf_pacgen.maths.distributions import NoiseDistribution
from hf_pacgen.model.state import unwrap
from hf_pacgen.model.storage import independent
from hf_pacgen.noise.perturbed import check_scale, scaled_noise

__all__ = ["AUTO", "Noise", "noise_of", "row_levels"]

AUTO = "auto"


def row_levels(weights: Tensor, *, scale: float) -> Tensor:
    """σ = scale · sqrt(mean of w² over the row), the same for all weights of a row.

    A row is what makes one output: all but the first axis; a vector, such as a bias, is one row.

    >>> row_levels(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), scale=2.0).tolist()
    [[7.071067810058594, 7.071067810058594], [0.0, 0.0]]
    """
    wide = weights.detach().to(torch.promote_types(weights.dtype, torch.float32))
    flat = wide.reshape(len(wide), -1) if wide.ndim > 1 else wide.reshape(1, -1)
    size = flat.square().mean(1).sqrt().mul(scale)
    return size.reshape(-1, *[1] * max(wide.ndim - 1, 0)).expand(wide.shape) if wide.ndim else size.reshape(())


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
        noise, level = scaled_noise(parameters, self.levels(parameters), model=bare, **how)
        noise.draw(level, seed, "perturbed")
        if mirrored:
            noise.mirror()
        try:
            noise.apply()
            yield
        finally:
            noise.restore()

    def levels(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """σ of weights, by name."""
        config, takes = self.config, frozenset[str]() if self.config is None else self.config.shape.facts.takes
        if config is None or "row_rms" in takes:
            return {name: row_levels(p, scale=self.scale) for name, p in parameters.items()}
        known = {name: getattr(config, name) for name in ("scale", "gamma", "epsilon") if name in takes}
        return {name: config.shape.facts.level(p.detach(), **known) for name, p in parameters.items()}

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
        shape = noise_scale.shape
        if shape.uses_curvature:
            raise ValueError(
                f"noise_scale has shape={shape.value!r}, whose level follows a curvature that is known in training "
                "only: expected a shape of the weights alone. Give NoiseConfig(shape='magnitude' or 'isotropic'), or a "
                "number for row-scaled noise."
            )
        return Noise(float(noise_scale.scale or 0.0), noise_scale)
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
