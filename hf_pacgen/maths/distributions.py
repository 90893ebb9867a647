"""Distributions of the noise u, one frozen dataclass each: uniform, normal, truncated normal.

The noisy weight is w + u with every u_i independent and symmetric around 0.  Entropy, moments and KL are elementwise,
in float64 (so that their sums are), in nats, and differentiable in scales and weights; samples are differentiable in
the scales.  A scale of 0 is no noise: samples 0, entropy -inf, KL inf.

To add a distribution, write its class with all its facts and name it in :class:`NoiseDistribution`: training,
sharpness and certificates ask the class and nobody else.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_pacgen.facts import Choice
from hf_pacgen.maths import truncation
from hf_pacgen.maths.binary_kl import Real


@dataclass(frozen=True, eq=False)
class Noise(ABC):
    """Noise around a weight; its fields are tensors that broadcast with the weights (plain numbers work too).

    The first field is σ, the level of the noise.
    """

    level_ratio: ClassVar[float]  # σ²/E u², where no box cuts the noise off
    needs_box: ClassVar[bool]  # a second field, N, cuts it off
    within_level: ClassVar[bool]  # |u| ≤ σ
    # u is σ times counter_rng.uniform, of which any slice can be drawn alone; other noise comes from a generator
    from_words: ClassVar[bool]

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name)))
        shapes = {field.name: tuple(getattr(self, field.name).shape) for field in fields(self)}
        try:
            torch.broadcast_shapes(*shapes.values())
        except RuntimeError:
            raise ValueError(f"The shapes of a {type(self).__name__} must broadcast; got {shapes}.") from None

    @classmethod
    def stays_in_box(cls) -> bool:
        """Whether |u| ≤ N can be had, which the theory of training needs."""
        return cls.needs_box or cls.within_level

    @classmethod
    def at_level(cls, sigma: Real, box: Real | None) -> Noise:
        """The noise of level σ; the box N is left out where it is not needed."""
        return cls(sigma, box) if cls.needs_box else cls(sigma)  # type: ignore[call-arg]

    @classmethod
    def second_moment_at(cls, sigma: Tensor, box: Tensor | None) -> Tensor:
        """E u² at the level σ, in its dtype; σ may be overwritten."""
        return cls.at_level(sigma, box).second_moment().to(sigma.dtype)

    def sample(
        self,
        generator: torch.Generator | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """One draw of u, or K for the shape (K, *shape of the scales); dtype and device are by default the scales'.

        >>> Uniform(torch.full((3,), 0.1)).sample(torch.Generator().manual_seed(0)).abs().max().item() <= 0.1
        True
        """
        scales = [getattr(self, field.name) for field in fields(self)]
        own = torch.broadcast_shapes(*(scale.shape for scale in scales))
        shape = own if shape is None else torch.Size(shape)
        # in any other shape weights would share their noise
        if shape[len(shape) - len(own) :] != own and own.numel() != 1:
            raise ValueError(f"shape must end in {tuple(own)}, the shape of the scales; got {tuple(shape)}.")
        dtype = dtype or torch.result_type(scales[0], scales[-1])
        device = torch.device(device or scales[0].device)
        # on the generator's own device, so that a CPU generator gives every device one noise
        source = generator.device if generator is not None else device
        # in float32 at least, then rounded: torch.rand of bfloat16 has 256 values
        wide = torch.promote_types(dtype, torch.float32)
        unit = self._unit(shape, generator=generator, dtype=wide, device=source)
        return self._from_unit(unit.to(device)).to(dtype)

    @staticmethod
    def _unit(shape: tuple[int, ...], **where: Any) -> Tensor:
        # U(-1, 1) without its ends; torch gives the lower ends of the cells of a grid, whose centers are symmetric
        draw = torch.rand(shape, **where)
        half_cell = torch.finfo(draw.dtype).eps / 2
        return draw.mul_(2).sub_(1).add_(half_cell).clamp_(-1 + half_cell, 1 - half_cell)

    @abstractmethod
    def _from_unit(self, unit: Tensor) -> Tensor:
        """u, in the dtype and on the device of ``unit``."""

    @abstractmethod
    def second_moment(self) -> Tensor:
        """E u²."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """-E log q(u), in nats."""

    def spread(self, weights: Real, prior_center: Real) -> Tensor:
        """E (w + u - p)² = (w - p)² + E u²."""
        return difference(weights, prior_center).square() + self.second_moment()

    def kl_to_normal(self, weights: Real, prior_center: Real, prior_scale: Real) -> Tensor:
        """KL(w + u ‖ N(p, τ²)) of each weight, in nats; p must not depend on the sample a bound is computed on.

        >>> round(Normal(0.5).kl_to_normal(3.0, 1.0, 0.5).item(), 12)  # (w - p)²/(2τ²)
        8.0
        """
        return normal_prior_kl(self.entropy(), self.spread(weights, prior_center), prior_scale)


@dataclass(frozen=True, eq=False)
class Uniform(Noise):
    """u ~ U(-σ, σ), ``half_width`` = σ.

    >>> round(Uniform(3.0).second_moment().item(), 12)
    3.0
    """

    half_width: Tensor
    level_ratio, needs_box, within_level, from_words = 3.0, False, True, True

    @classmethod
    def second_moment_at(cls, sigma: Tensor, box: Tensor | None) -> Tensor:
        # in place and without float64: training asks for it in every step
        return sigma.square_().div_(3)

    def _from_unit(self, unit: Tensor) -> Tensor:
        return unit * self.half_width.to(unit)

    def second_moment(self) -> Tensor:
        """E u² = σ²/3."""
        return self.half_width.double().square() / 3

    def entropy(self) -> Tensor:
        """log(2σ)."""
        return self.half_width.double().log() + math.log(2)

    def kl_to_uniform(self, weights: Real, prior_center: Real, prior_half_width: Real) -> Tensor:
        """KL to the prior U(p - τ, p + τ), τ > 0: log(τ/σ) where |w - p| + σ ≤ τ, else infinite.

        >>> Uniform(0.5).kl_to_uniform(torch.tensor([0.5, 0.6]), 0.0, 1.0).tolist()
        [0.6931471805599453, inf]
        """
        tau = _checked("prior_half_width", prior_half_width, strict=True).double()
        inside = difference(weights, prior_center).abs() + self.half_width.double() <= tau
        return torch.where(inside, (tau.log() - self.half_width.double().log()).clamp(min=0), math.inf)


@dataclass(frozen=True, eq=False)
class Normal(Noise):
    """u ~ N(0, s²), ``scale`` = s.

    >>> round(Normal(1.0).entropy().item(), 6) == round(0.5 * math.log(2 * math.pi * math.e), 6)
    True
    """

    scale: Tensor
    level_ratio, needs_box, within_level, from_words = 1.0, False, False, False

    @staticmethod
    def _unit(shape: tuple[int, ...], **where: Any) -> Tensor:
        return torch.randn(shape, **where)

    def _from_unit(self, unit: Tensor) -> Tensor:
        return unit * self.scale.to(unit)

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
    level_ratio, needs_box, within_level, from_words = 1.0, True, False, False

    def _from_unit(self, unit: Tensor) -> Tensor:
        s, box = torch.broadcast_tensors(self.scale.to(unit), self.half_width.to(unit))
        a = truncation.ratio(s, box)
        # Inverse distribution function; below a² = eps it is N·unit to the last digit, where erf may underflow.
        normal = s * math.sqrt(2) * torch.erfinv(torch.erf(a / math.sqrt(2)) * unit)
        flat = a < math.sqrt(torch.finfo(unit.dtype).eps)
        return torch.minimum(torch.maximum(torch.where(flat, box * unit, normal), -box), box)

    def second_moment(self) -> Tensor:
        """E u² = s²(1 - 2aφ(a)/Z), with a = N/s, Z = erf(a/√2) and φ the standard normal density."""
        return truncation.second_moment(self.scale.double(), self.half_width.double())

    def entropy(self) -> Tensor:
        """log(Z s √(2π)) + E u²/(2s²)."""
        return truncation.entropy(self.scale.double(), self.half_width.double())


class NoiseDistribution(Choice):
    """How the noise of one weight is distributed; a member's facts are the class that knows all about it."""

    facts: type[Noise]

    UNIFORM = "uniform", Uniform
    TRUNCATED_NORMAL = "truncated_normal", TruncatedNormal
    NORMAL = "normal", Normal


def make_noise(distribution: NoiseDistribution | str, scale: Real, half_width: Real | None = None) -> Noise:
    """The noise of a given name: ``scale`` is σ of "uniform" and s of the others; only "truncated_normal" has a box.

    >>> make_noise("uniform", 0.5).second_moment().item() == 0.25 / 3
    True
    """
    kind = NoiseDistribution(distribution)
    if kind.facts.needs_box and half_width is None:
        raise ValueError(f"{kind.value} needs half_width, the N_i it is truncated at; or use distribution='normal'.")
    return kind.facts.at_level(scale, half_width)


def normal_prior_kl(entropy: Real, spread: Real, prior_scale: Real, count: int = 1) -> Tensor:
    """KL to the prior N(p, τ²), from sums over m = ``count`` weights: m log(τ √(2π)) + spread/(2τ²) - entropy.

    Σ :meth:`Noise.entropy` and Σ :meth:`Noise.spread` do not depend on τ, so two sums (which add over tensors and
    processes) give the KL of a whole grid of τ.  A scale that many weights share counts once a weight: expand it first.

    >>> normal_prior_kl(Normal(1.0).entropy(), 1.0, torch.tensor([1.0, math.e])).tolist()[0]
    0.0
    """
    tau = _checked("prior_scale", prior_scale, strict=True).double()
    # Divided twice: τ² may underflow where spread/τ² does not overflow.
    return (count * (tau.log() + 0.5 * math.log(2 * math.pi)) + spread / tau / tau / 2 - entropy).clamp(min=0)


def difference(weights: Real, center: Real) -> Tensor:
    """w - p."""
    # in bfloat16 a fine-tuned weight's step would be lost
    return torch.as_tensor(weights).double() - torch.as_tensor(center).double()


def _checked(name: str, value: Real, *, strict: bool = False) -> Tensor:
    # a number becomes float64; a tensor keeps its dtype, as its samples have it
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    tensor = tensor if tensor.is_floating_point() else tensor.double()
    good = tensor.isfinite() & ((tensor > 0) if strict else (tensor >= 0))
    if not good.all():
        first = tensor.detach()[~good].flatten()[0].item()
        raise ValueError(f"{name} must be finite and {'> 0' if strict else '>= 0'}; got {first}.")
    return tensor
