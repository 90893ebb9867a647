"""Distributions of the noise u, one frozen dataclass each: uniform, normal, truncated normal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from hf_pacgen.maths import truncation
from hf_pacgen.maths.noise_base import Noise, checked, difference, normal_prior_kl, symmetric_uniform

__all__ = ["Noise", "NoiseDistribution", "Normal", "TruncatedNormal", "Uniform", "make_noise", "normal_prior_kl"]


class NoiseDistribution(str, Enum):
    """How the noise of one weight is distributed."""

    UNIFORM = "uniform"
    TRUNCATED_NORMAL = "truncated_normal"
    NORMAL = "normal"

    @classmethod
    def _missing_(cls, value: object) -> NoiseDistribution:
        known = ", ".join(repr(member.value) for member in cls)
        raise ValueError(f"distribution must be one of {known}; got {value!r}.")


@dataclass(frozen=True, eq=False)
class Uniform(Noise):
    """u ~ U(-σ, σ), ``half_width`` = σ.

    >>> round(Uniform(3.0).second_moment().item(), 12)
    3.0
    """

    half_width: Tensor

    def _draw(
        self, generator: torch.Generator | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        return symmetric_uniform(generator, shape, dtype, device) * self.half_width.to(device, dtype)

    def second_moment(self) -> Tensor:
        """E u² = σ²/3."""
        return self.half_width.double().square() / 3

    def entropy(self) -> Tensor:
        """log(2σ)."""
        return self.half_width.double().log() + math.log(2)

    def kl_to_uniform(
        self, weights: Tensor | float, prior_center: Tensor | float, prior_half_width: Tensor | float
    ) -> Tensor:
        """KL to the prior U(p - τ, p + τ): log(τ/σ) where |w - p| + σ ≤ τ, else infinite.

        Raises:
            ValueError: on a τ that is not positive and finite.

        >>> Uniform(0.5).kl_to_uniform(torch.tensor([0.5, 0.6]), 0.0, 1.0).tolist()
        [0.6931471805599453, inf]
        """
        tau = checked("prior_half_width", prior_half_width, strict=True).double()
        inside = difference(weights, prior_center).abs() + self.half_width.double() <= tau
        return torch.where(inside, (tau.log() - self.half_width.double().log()).clamp(min=0), math.inf)


@dataclass(frozen=True, eq=False)
class Normal(Noise):
    """u ~ N(0, s²), ``scale`` = s.

    >>> round(Normal(1.0).entropy().item(), 6) == round(0.5 * math.log(2 * math.pi * math.e), 6)
    True
    """

    scale: Tensor

    def _draw(
        self, generator: torch.Generator | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        source = generator.device if generator is not None else device
        draw = torch.randn(shape, generator=generator, dtype=dtype, device=source).to(device)
        return draw * self.scale.to(device, dtype)

    def second_moment(self) -> Tensor:
        """E u² = s²."""
        return self.scale.double().square()

    def entropy(self) -> Tensor:
        """log(s √(2πe))."""
        return self.scale.double().log() + 0.5 * math.log(2 * math.pi * math.e)


@dataclass(frozen=True, eq=False)
class TruncatedNormal(Noise):
    """u ~ N(0, s²) truncated to [-N, N]: ``scale`` = s, ``half_width`` = N.

    >>> TruncatedNormal(1.0, 1e9).second_moment().item(), TruncatedNormal(1e9, 3.0).second_moment().item()
    (1.0, 3.0)
    """

    scale: Tensor
    half_width: Tensor

    def _draw(
        self, generator: torch.Generator | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        s, box = torch.broadcast_tensors(self.scale.to(device, dtype), self.half_width.to(device, dtype))
        a = truncation.ratio(s, box)
        draw = symmetric_uniform(generator, shape, dtype, device)
        # Inverse distribution function; below a² = eps it is N·draw to the last digit, where erf may underflow.
        normal = s * math.sqrt(2) * torch.erfinv(torch.erf(a / math.sqrt(2)) * draw)
        flat = a < math.sqrt(torch.finfo(dtype).eps)
        return torch.minimum(torch.maximum(torch.where(flat, box * draw, normal), -box), box)

    def second_moment(self) -> Tensor:
        """E u² = s²(1 - 2aφ(a)/Z), with a = N/s, Z = erf(a/√2) and φ the standard normal density."""
        return truncation.second_moment(self.scale.double(), self.half_width.double())

    def entropy(self) -> Tensor:
        """log(Z s √(2π)) + E u²/(2s²)."""
        return truncation.entropy(self.scale.double(), self.half_width.double())


def make_noise(
    distribution: NoiseDistribution | str, scale: Tensor | float, half_width: Tensor | float | None = None
) -> Noise:
    """The noise of a given name: ``scale`` is σ of "uniform" and s of the others; only "truncated_normal" has a box.

    Raises:
        ValueError: on an unknown name, and on a truncated normal without ``half_width``.

    >>> make_noise("uniform", 0.5).second_moment().item() == 0.25 / 3
    True
    """
    kind = NoiseDistribution(distribution)
    scale = checked("scale", scale)
    if kind is NoiseDistribution.UNIFORM:
        return Uniform(scale)
    if kind is NoiseDistribution.NORMAL:
        return Normal(scale)
    if half_width is None:
        raise ValueError("truncated_normal needs half_width, the N_i it is truncated at; or use distribution='normal'.")
    return TruncatedNormal(scale, checked("half_width", half_width))
