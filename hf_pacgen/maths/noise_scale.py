"""The noise scale σ that the theory calls optimal, and its simpler cousins: pure tensor functions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def optimal_noise_scale(
    weights: Tensor,
    hessian_diagonal: Tensor,
    hessian_lipschitz: float,
    *,
    eta: float,
    gamma: float = 0.1,
    epsilon: float = 0.1,
    num_parameters: int,
    scale: float = 1.0,
    divisor: float = 1.0,
    buffers: tuple[Tensor, Tensor] | None = None,
    peak: float | None = None,
) -> Tensor:
    """Half-width of the uniform noise that minimizes the third-order PAC-Bayes bound.

    σ_i* = min(1/sqrt(η(H_ii/3 + ρ√m N_i/9)), N_i), and N_i where that curvature is not positive,
    with N_i = γ|w_i| + ε.

    Args:
        weights, hessian_diagonal, hessian_lipschitz: w and H_ii, of one shape, and ρ ≥ 0.
        eta, num_parameters: η > 0, the inverse temperature, and m of the whole model.
        gamma, epsilon: of the neighborhood.
        scale: factor of 1/sqrt(...), 1 for the optimum; the box stays.
        divisor: H_ii is this part of ``hessian_diagonal``; a running sum need not be divided first.
        buffers: two tensors like the result to work in, for those who call often; one of them will be the result.
        peak: the largest of ``hessian_diagonal``, if known: it may show that all noise is at N_i.

    Returns:
        σ, shaped like ``weights``, in their dtype (at least float32).

    Source: minimizer of Σ σ_i²(H_ii/6 + ρ√m N_i/18) + KL/η over σ (arXiv 1809.07402, uniform prior).

    >>> sigma = optimal_noise_scale(torch.ones(1), torch.tensor([300.0]), 0.0, eta=1.0, num_parameters=1)
    >>> round(sigma.item(), 6)
    0.1
    """
    # η(H/3 + ρ√m N/9) = (η/3)(H + (ρ√m/3) N): the constants leave the elementwise work
    slope = hessian_lipschitz * divisor * math.sqrt(num_parameters) / 3
    factor = scale * math.sqrt(3 / (eta / divisor))
    return _in_box(weights, hessian_diagonal, slope, factor, gamma, epsilon, buffers, peak)


def article_noise_scale(
    weights: Tensor,
    hessian_diagonal: Tensor,
    hessian_lipschitz: float,
    *,
    scale: float,
    gamma: float = 0.1,
    epsilon: float = 0.1,
    divisor: float = 1.0,
    buffers: tuple[Tensor, Tensor] | None = None,
    peak: float | None = None,
) -> Tensor:
    """The form the article quotes in its text: σ_i = scale/sqrt(H_ii + ρN_i), clipped to N_i.

    It differs from :func:`optimal_noise_scale` by the missing √m and constants.

    >>> article_noise_scale(torch.ones(1), torch.tensor([400.0]), 0.0, scale=1.0).item() == 0.05000000074505806
    True
    """
    slope, factor = hessian_lipschitz * divisor, scale * math.sqrt(divisor)
    return _in_box(weights, hessian_diagonal, slope, factor, gamma, epsilon, buffers, peak)


def magnitude_noise_scale(weights: Tensor, *, scale: float) -> Tensor:
    """σ_i = scale · |w_i|.

    >>> magnitude_noise_scale(torch.tensor([-2.0, 0.0]), scale=0.5).tolist()
    [1.0, 0.0]
    """
    return _wide(weights).abs().mul_(scale)


def isotropic_noise_scale(weights: Tensor, *, scale: float) -> Tensor:
    """σ_i = scale, the same for every weight.

    >>> isotropic_noise_scale(torch.zeros(2), scale=0.5).tolist()
    [0.5, 0.5]
    """
    return torch.full_like(weights, scale, dtype=torch.promote_types(weights.dtype, torch.float32), requires_grad=False)


def box_noise_scale(weights: Tensor, *, scale: float, gamma: float = 0.1, epsilon: float = 0.1) -> Tensor:
    """σ_i = scale · N_i, N_i = γ|w_i| + ε: a part of the neighborhood, without any curvature.

    >>> box_noise_scale(torch.tensor([-2.0, 0.0]), scale=0.5, gamma=0.1, epsilon=0.2).tolist()
    [0.20000000298023224, 0.10000000149011612]
    """
    return _wide(weights).abs().mul_(gamma * scale).add_(epsilon * scale)


def row_noise_scale(row_rms: Tensor, *, scale: float) -> Tensor:
    """σ_i = scale · r, with r the root mean square of the weights in the row of w_i; in place of ``row_rms``.

    A row is everything at one index of the first dimension, as the weights of one output of a Linear layer; a tensor
    of one dimension (a bias, the weights of a norm) is one row.

    >>> row_noise_scale(torch.tensor([3.0, 3.0]), scale=0.5).tolist()
    [1.5, 1.5]
    """
    return row_rms.mul_(scale)


def _in_box(
    w: Tensor, h: Tensor, slope: float, factor: float, gamma: float, epsilon: float, buffers: Any, peak: float | None
) -> Tensor:
    # min(factor/sqrt(H + slope·N), N), and N where H + slope·N is not positive
    w = _wide(w)
    box, sigma = (torch.empty_like(w), torch.empty_like(w)) if buffers is None else buffers
    torch.abs(w, out=box).mul_(gamma).add_(epsilon)
    if factor == 0:
        return box.zero_()
    if peak is not None and box.numel():
        # a block where no curvature is felt, as most are early in a training, costs one maximum and no more
        widest = box.amax().item() if peak > 0 or slope else 0.0
        if (max(peak, 0.0) + slope * widest) * widest**2 <= factor**2:
            return box
    h = _wide(h)
    if slope:
        h = torch.add(h, box, alpha=slope, out=sigma)
    # 1/sqrt(0) = inf, which the minimum with the box turns into N_i
    torch.clamp(h, min=0, out=sigma).rsqrt_().mul_(factor)
    return torch.minimum(sigma, box, out=sigma)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
