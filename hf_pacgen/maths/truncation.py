"""A normal N(0, s²) truncated to [-N, N]: second moment and entropy without cancellation, for every a = N/s.

Below a = 1 the textbook forms subtract nearly equal numbers.  There they are rewritten in the series of
positive terms M(a) = Σ_{k≥0} a^{2k}/(2k+1)!! = Z √(π/2) e^{a²/2} / a, Z = erf(a/√2), so that both limits
(a → 0 the uniform distribution, a → ∞ the normal) hold to the last digit (A&S 7.1.6).  All s and N are float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SERIES_TERMS = 16  # 1/(2·16+1)!! < 10⁻¹⁷
FAR = 40.0  # φ(40) = 0 in float64, and a φ(a) does not yet overflow into inf·0


def ratio(scale: Tensor, half_width: Tensor) -> Tensor:
    """a = N/s, infinite where s = 0."""
    return torch.where(scale > 0, half_width / scale, math.inf)


def second_moment(scale: Tensor, half_width: Tensor) -> Tensor:
    """E u² = s²(1 - 2aφ(a)/Z), which is N² (M - 1)/(a² M); φ is the standard normal density.

    >>> second_moment(torch.tensor([1.0, 1e200]), torch.tensor([1e200, 3.0]).double()).tolist()
    [1.0, 3.0]
    """
    a = ratio(scale, half_width)
    tail, excess = _series(a)
    return torch.where(a < 1, half_width.square() * tail / (1 + excess), scale.square() * _moment_ratio(a))


def entropy(scale: Tensor, half_width: Tensor) -> Tensor:
    """log(Z s √(2π)) + E u²/(2s²) in nats, which is log(2N) - a²/2 + log M + (M - 1)/(2M); -inf where s or N is 0.

    >>> entropy(torch.tensor(1e200).double(), torch.tensor(0.5).double()).item()  # log(2N)
    0.0
    """
    a = ratio(scale, half_width)
    _, excess = _series(a)
    flat = (2 * half_width).log() - a.clamp(max=1).square() / 2 + torch.log1p(excess) + excess / (1 + excess) / 2
    log_z = torch.log1p(-torch.erfc(a.clamp(min=1) / math.sqrt(2)))
    peaked = scale.log() + 0.5 * math.log(2 * math.pi) + log_z + _moment_ratio(a) / 2
    return torch.where(a < 1, flat, peaked)


def _series(a: Tensor) -> tuple[Tensor, Tensor]:
    # (M(a) - 1)/a² and M(a) - 1 for a ≤ 1; larger a, for which the other form is taken, are cut down to 1
    square = a.clamp(max=1).square()
    tail = torch.ones_like(square)
    # Horner's rule, from the smallest term on
    for k in range(SERIES_TERMS, 1, -1):
        tail = 1 + square / (2 * k + 1) * tail
    tail = tail / 3
    return tail, square * tail


def _moment_ratio(a: Tensor) -> Tensor:
    # E u²/s² = 1 - 2aφ(a)/Z for a ≥ 1; smaller a are raised to 1
    a = a.clamp(1, FAR)
    density = torch.exp(-a.square() / 2) / math.sqrt(2 * math.pi)
    return 1 - 2 * a * density / torch.erf(a / math.sqrt(2))
