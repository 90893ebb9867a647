"""The noise scale σ that the theory calls optimal, and its simpler cousins: pure tensor functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hf_pacgen.score import neighborhood

__all__ = ["article_noise_scale", "optimal_noise_scale"]


def optimal_noise_scale(
    weights: Tensor,
    hessian_diagonal: Tensor,
    hessian_lipschitz: float,
    *,
    eta: float,
    gamma: float = 0.1,
    epsilon: float = 0.1,
    num_parameters: int,
) -> Tensor:
    """Half-width of the uniform noise that minimizes the third-order PAC-Bayes bound.

    σ_i* = min(1/sqrt(η(H_ii/3 + ρ√m N_i/9)), N_i), and N_i where that curvature is not positive,
    with N_i = γ|w_i| + ε.

    Args:
        weights, hessian_diagonal: w and H_ii, of one shape.
        hessian_lipschitz: ρ ≥ 0.
        eta: η > 0, the inverse temperature.
        gamma, epsilon: of the neighborhood.
        num_parameters: m of the whole model.

    Returns:
        σ, shaped like ``weights``, in their dtype (at least float32).

    Source: minimizer of Σ σ_i²(H_ii/6 + ρ√m N_i/18) + KL/η over σ (arXiv 1809.07402, uniform prior).

    >>> sigma = optimal_noise_scale(torch.ones(1), torch.tensor([300.0]), 0.0, eta=1.0, num_parameters=1)
    >>> round(sigma.item(), 6)
    0.1
    """
    dtype = torch.promote_types(weights.dtype, torch.float32)
    w = weights.detach().to(dtype)
    box = neighborhood(w, gamma=gamma, epsilon=epsilon)
    curvature = hessian_diagonal.detach().to(dtype) / 3
    curvature.add_(box, alpha=hessian_lipschitz * math.sqrt(num_parameters) / 9)
    # 1/sqrt(0) = inf, which the minimum with the box turns into N_i.
    return curvature.mul_(eta).clamp_(min=0).rsqrt_().minimum(box)


def article_noise_scale(
    weights: Tensor,
    hessian_diagonal: Tensor,
    hessian_lipschitz: float,
    *,
    scale: float,
    gamma: float = 0.1,
    epsilon: float = 0.1,
) -> Tensor:
    """The form the article quotes in its text: σ_i = scale/sqrt(H_ii + ρN_i), clipped to N_i.

    It differs from :func:`optimal_noise_scale` by the missing √m and constants.

    >>> article_noise_scale(torch.ones(1), torch.tensor([400.0]), 0.0, scale=1.0).item() == 0.05000000074505806
    True
    """
    dtype = torch.promote_types(weights.dtype, torch.float32)
    w = weights.detach().to(dtype)
    box = neighborhood(w, gamma=gamma, epsilon=epsilon)
    curvature = hessian_diagonal.detach().to(dtype).add(box, alpha=hessian_lipschitz)
    return curvature.clamp_(min=0).rsqrt_().mul_(scale).minimum(box)
