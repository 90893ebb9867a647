"""What every distribution of the noise u offers: samples, moments, entropy and the KL to a normal prior.

The noisy weight is w + u with every u_i independent and symmetric around 0.  Entropy, moments and KL are
elementwise, in float64 (so that their sums are), in nats, and differentiable in scales and weights; samples
are differentiable in the scales.  A scale of 0 is no noise: samples 0, entropy -inf, KL inf.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["Noise", "checked", "difference", "normal_prior_kl", "symmetric_uniform"]


def checked(name: str, value: Tensor | float, *, strict: bool = False) -> Tensor:
    """``value`` as a floating-point tensor (a number as float64), or a ValueError unless it is finite and ≥ 0, > 0."""
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    tensor = tensor if tensor.is_floating_point() else tensor.double()
    good = tensor.isfinite() & ((tensor > 0) if strict else (tensor >= 0))
    if not good.all():
        first = tensor.detach()[~good].flatten()[0].item()
        raise ValueError(f"{name} must be finite and {'> 0' if strict else '>= 0'}; got {first}.")
    return tensor


def normal_prior_kl(
    entropy: Tensor | float, spread: Tensor | float, prior_scale: Tensor | float, count: int = 1
) -> Tensor:
    """KL to the prior N(p, τ²), from sums over the weights: m log(τ √(2π)) + spread/(2τ²) - entropy.

    Entropy and spread do not depend on τ, so two sums over the weights (which add over tensors and
    processes) give the KL of a whole grid of τ.  Rounding below 0 is cut off.  A scale that many weights
    share counts once a weight: expand it before summing.

    Args:
        entropy: Σ_i of :meth:`Noise.entropy`, in nats.
        spread: Σ_i of :meth:`Noise.spread`, (w_i - p_i)² + E u_i².
        prior_scale: τ > 0; broadcasts.
        count: m, the number of weights summed.

    Raises:
        ValueError: on a τ that is not positive and finite.

    >>> entropy_of_a_standard_normal = 0.5 * math.log(2 * math.pi * math.e)
    >>> normal_prior_kl(entropy_of_a_standard_normal, 1.0, torch.tensor([1.0, math.e])).tolist()[0]
    0.0
    """
    tau = checked("prior_scale", prior_scale, strict=True).double()
    # Divided twice: τ² may underflow where spread/τ² does not overflow.
    return (count * (tau.log() + 0.5 * math.log(2 * math.pi)) + spread / tau / tau / 2 - entropy).clamp(min=0)


@dataclass(frozen=True, eq=False)
class Noise(ABC):
    """Noise around a weight; its fields are tensors that broadcast with the weights (plain numbers work too)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, checked(field.name, getattr(self, field.name)))
        shapes = {field.name: tuple(getattr(self, field.name).shape) for field in fields(self)}
        try:
            torch.broadcast_shapes(*shapes.values())
        except RuntimeError:
            raise ValueError(f"The shapes of a {type(self).__name__} must broadcast; got {shapes}.") from None

    def sample(
        self,
        generator: torch.Generator | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """One draw of u.

        Args:
            generator: drawn from on its own device (then moved), so a CPU generator gives every device one noise.
            shape: by default that of the scales; (K, *shape of the scales) gives K draws.
            dtype: by default the scales'; drawn in float32 at least, then rounded.
            device: by default the scales'.

        Raises:
            ValueError: on a shape in which weights would share their noise.

        >>> from hf_pacgen.maths.distributions import Uniform
        >>> Uniform(torch.full((3,), 0.1)).sample(torch.Generator().manual_seed(0)).abs().max().item() <= 0.1
        True
        """
        scales = [getattr(self, field.name) for field in fields(self)]
        own = torch.broadcast_shapes(*(scale.shape for scale in scales))
        shape = own if shape is None else torch.Size(shape)
        if shape[len(shape) - len(own) :] != own and own.numel() != 1:
            raise ValueError(f"shape must end in {tuple(own)}, the shape of the scales; got {tuple(shape)}.")
        dtype = dtype or torch.result_type(scales[0], scales[-1])
        device = torch.device(device or scales[0].device)
        return self._draw(generator, shape, torch.promote_types(dtype, torch.float32), device).to(dtype)

    @abstractmethod
    def _draw(
        self, generator: torch.Generator | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """u in ``dtype``, at least float32."""

    @abstractmethod
    def second_moment(self) -> Tensor:
        """E u²."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """-E log q(u), in nats."""

    def spread(self, weights: Tensor | float, prior_center: Tensor | float) -> Tensor:
        """E (w + u - p)² = (w - p)² + E u²."""
        return difference(weights, prior_center).square() + self.second_moment()

    def kl_to_normal(
        self, weights: Tensor | float, prior_center: Tensor | float, prior_scale: Tensor | float
    ) -> Tensor:
        """KL(w + u ‖ N(p, τ²)) of each weight, in nats, ≥ 0.

        Args:
            weights: w.
            prior_center: p, which must not depend on the sample a bound is computed on.
            prior_scale: the standard deviation τ > 0.

        Raises:
            ValueError: on a τ that is not positive and finite.

        >>> from hf_pacgen.maths.distributions import Normal
        >>> round(Normal(0.5).kl_to_normal(3.0, 1.0, 0.5).item(), 12)  # (w - p)²/(2τ²)
        8.0
        """
        return normal_prior_kl(self.entropy(), self.spread(weights, prior_center), prior_scale)


def difference(weights: Tensor | float, center: Tensor | float) -> Tensor:
    """w - p, subtracted in float64 (in bfloat16 a fine-tuned weight's step would be lost)."""
    return torch.as_tensor(weights).double() - torch.as_tensor(center).double()


def symmetric_uniform(
    generator: torch.Generator | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """U(-1, 1) with the ends left out, symmetric on torch's grid: the centers of its cells, not their left ends."""
    source = generator.device if generator is not None else device
    half_cell = torch.finfo(dtype).eps / 2
    draw = torch.rand(shape, generator=generator, dtype=dtype, device=source).to(device)
    return draw.mul_(2).sub_(1).add_(half_cell).clamp_(-1 + half_cell, 1 - half_cell)
