"""kl(q‖p) between two coins, and its inverses: float64, elementwise, exact at 0 and 1; a ValueError outside [0, 1].

Where p is close to q the textbook form q log(q/p) + (1-q) log((1-q)/(1-p)) loses all its digits
(at n = 10⁹ a bound is 10⁻⁴ away from the empirical loss and kl is 10⁻⁸), so everything here works on
the shift d = p - q, which is solved for directly.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

Real: TypeAlias = Tensor | float  # or a tensor that broadcasts with the other arguments
# a loss below this is taken for 0, which changes no digit of an inverse; it keeps d/q from overflowing
SMALLEST = 1e-300


def as_float64(
    name: str, value: Real, *, low: float = 0.0, high: float = math.inf, ends: str = "[)", remedy: str = ""
) -> Tensor:
    """``value`` as a float64 tensor (its graph kept), or a ValueError that names the interval it must lie in."""
    tensor = torch.as_tensor(value, dtype=torch.float64)
    above = tensor >= low if ends[0] == "[" else tensor > low
    below = tensor <= high if ends[1] == "]" else tensor < high
    good = above & below  # NaN fails every comparison
    if not good.all():
        first = tensor.detach()[~good].flatten()[0].item()
        interval = f"{ends[0]}{low:g}, {high:g}{ends[1]}"
        raise ValueError(f"{name} must be in {interval}; got {first}.{' ' + remedy if remedy else ''}")
    return tensor


def binary_kl(q: Real, p: Real) -> Tensor:
    """kl(q‖p) = q log(q/p) + (1-q) log((1-q)/(1-p)) in nats, of probabilities that broadcast.

    0 log 0 counts as 0; kl is infinite where q is impossible under p.

    >>> round(binary_kl(0.5, 0.25).item(), 6) == round(0.5 * math.log(4 / 3), 6)
    True
    """
    q = as_float64("q", q, high=1.0, ends="[]")
    p = as_float64("p", p, high=1.0, ends="[]")
    return (_half(q, p, p - q) + _half(1 - q, 1 - p, q - p)).clamp(min=0)


def _half(q: Tensor, p: Tensor, shift: Tensor) -> Tensor:
    # q log(q/p), from the shift p - q where that is the small number
    # torch.where computes both branches: keep the one that is not taken from dividing by 0, which NaNs the gradient
    q_safe = torch.where(q > 0, q, 1.0)
    near = -q * torch.log1p((shift / q_safe).clamp(min=-0.5))
    far = q * (q_safe.log() - p.log())
    return torch.where(q > 0, torch.where(shift > -0.5 * q, near, far), 0.0)


def kl_inverse_upper(q: Real, budget: Real) -> Tensor:
    """The largest p with kl(q‖p) ≤ c: how large the truth may be when q was observed.

    kl⁻¹(q, c) = max{p ∈ [q, 1] : kl(q‖p) ≤ c}.  Exactly 1 - e^{-c} at q = 0, 1 at q = 1, q at c = 0;
    elsewhere rounded upward, by bisection down to neighboring floats.

    ``q`` are frequencies in [0, 1], ``budget`` is c in nats, in [0, inf].  Differentiable in both (implicit function
    theorem), so that a bound can be minimized.

    Source: Langford, *Tutorial on practical prediction theory* (JMLR 2005); Seeger (JMLR 2002).

    >>> round(kl_inverse_upper(0.0, math.log(2.0)).item(), 12)
    0.5
    """
    q, budget = _arguments(q, budget)
    with torch.no_grad():
        p = (q + _shift(q, 1 - q, budget)).clamp(max=1)
        p = torch.where(q == 0, -torch.expm1(-budget), p)
    return _with_gradient(p, q, budget)


def kl_inverse_lower(q: Real, budget: Real) -> Tensor:
    """The smallest p with kl(q‖p) ≤ c; the mirror image, 1 - kl⁻¹(1-q, c).

    Exactly e^{-c} at q = 1, 0 at q = 0, q at c = 0; rounded downward elsewhere.

    >>> round(kl_inverse_lower(1.0, math.log(2.0)).item(), 12)
    0.5
    """
    q, budget = _arguments(q, budget)
    with torch.no_grad():
        p = (q - _shift(1 - q, q, budget)).clamp(min=0)
        p = torch.where(q == 1, torch.exp(-budget), p)
    return _with_gradient(p, q, budget)


def _arguments(q: Real, budget: Real) -> tuple[Tensor, Tensor]:
    remedy = "Clip and rescale the loss, or use the 0-1 error."
    observed, nats = torch.broadcast_tensors(
        as_float64("q", q, high=1.0, ends="[]", remedy=remedy), as_float64("budget", budget, ends="[]")
    )
    return torch.where(observed < SMALLEST, 0.0, observed), nats


def _shift(q: Tensor, r: Tensor, budget: Tensor) -> Tensor:
    # the d in [0, r] where -q log(1 + d/q) - r log(1 - d/r) = budget, with r = 1 - q; r where it stays below
    # the two terms cancel to first order, so the sum is off by one part in 10¹⁶ of d, and d by about as much
    q_safe, r_safe = torch.where(q > 0, q, 1.0), torch.where(r > 0, r, 1.0)
    low = torch.zeros_like(budget)
    high = torch.minimum(r, (budget / 2).sqrt())  # Pinsker: kl ≥ 2 d²
    # Pinsker is tight at q = 1/2, where rounding may put the root one float above it.
    high = torch.minimum(r, high * (1 + 1e-15))
    while True:
        middle = (low + high) / 2
        if not ((low < middle) & (middle < high)).any():  # neighboring floats
            return high
        kl = -q * torch.log1p(middle / q_safe) - r * torch.log1p(-middle / r_safe)
        below = kl < budget
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)


def _with_gradient(p: Tensor, q: Tensor, budget: Tensor) -> Tensor:
    # the derivatives of the root of kl(q‖p) = c: ∂p/∂c = p(1-p)/(p-q), ∂p/∂q = (logit p - logit q) ∂p/∂c
    if not (torch.is_grad_enabled() and (q.requires_grad or budget.requires_grad)):
        return p
    with torch.no_grad():
        gap = torch.where(p == q, SMALLEST, p - q)
        by_budget = p * (1 - p) / gap
        by_q = torch.where(p == q, 1.0, (torch.logit(p, 1e-16) - torch.logit(q, 1e-16)) * by_budget)
    # Adds exactly 0, and only the slope.
    return p + by_budget * (budget - budget.detach()) + by_q * (q - q.detach())
