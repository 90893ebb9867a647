"""The blend of a quiet, biased estimate with a noisy, unbiased one: D̂ = g + α(h - g) for every parameter tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_pacgen.curvature.diagonal.sums import DiagonalSums
from hf_pacgen.curvature.displacement import chunks
from hf_pacgen.curvature.weight_space import Vector

__all__ = ["blend_", "blend_share"]

CAUTION = 2.0
"""Standard errors by which the squared error of g must show before it counts in a blend."""
FLOOR = 0.5
"""Part of the variance of g that its squared error is at least, as both are known from few batches."""


def blend_(
    probes: DiagonalSums, gradients: DiagonalSums, share: Tensor, excess: Tensor
) -> tuple[Vector, Vector | None]:
    """The blend of two means, in the buffers of the second, and the standard error of its entries.

    The error is that of the Hutchinson part times its share, and of the Gauss-Newton part how far it is from the
    Hessian: ``excess``, the mean over a tensor of what (h - g)² has beyond the noise of h.
    """
    stderr = probes.elementwise_stderr_()
    for name, alpha, beyond in zip(probes.names, share.tolist(), excess.tolist(), strict=True):
        gradients.total[name].lerp_(probes.total[name], alpha)
        if stderr is not None:
            stderr[name].mul_(alpha).square_().add_((1 - alpha) ** 2 * beyond).sqrt_()
    return gradients.total, stderr


def blend_share(probes: DiagonalSums, gradients: DiagonalSums) -> tuple[Tensor, Tensor]:
    """α of D̂ = g + α(h - g) for every tensor, e/(e + v), g and h becoming means.

    e = ‖g - H‖², the bias of g and its noise, and v, the variance of h, give the α of least expected squared error.
    e is the mean of ⟨h_k - g, h_l - g⟩ over pairs of groups of batches: their noises are independent, so it has no
    bias, whatever the entries of one probe share.  What is t of its standard errors, which the scatter of the pairs
    gives, counts by 1 - (CAUTION/t)², or chance would let the noise of h in; but e is not below a part of the variance
    of g, which is known.  α → 1 as passes grow.

    Returns:
        α, and the mean of (H - GGN)² over each tensor as far as it shows beyond the noise of h.
    """
    noisy, quiet = probes.mean_(), gradients.mean_()
    moments = []
    for name in probes.names:
        found = [torch.zeros(3)]
        for _, (h, g) in chunks(noisy[name], quiet[name]):
            found.append(torch.stack([torch.linalg.vector_norm(each) for each in (h, g, h - g)]))
        moments.append(torch.stack([row.cpu().double() for row in found]).square().sum(0))
    noise, own, distances = probes.space.total(torch.stack(moments)).unbind(1)
    variance, quiet_variance = probes.mean_variance(noise), gradients.mean_variance(own)
    if variance is None:
        # one batch shows no spread: trust the quiet one, and do not say by how much it is wrong
        return torch.zeros_like(noise), torch.full_like(noise, torch.nan)
    error = _squared_error(probes, gradients)
    if quiet_variance is not None:
        error = torch.maximum(error, FLOOR * quiet_variance)
    excess = (distances - variance).clamp_(min=0) / probes.sizes
    return error / (error + variance).clamp_min(1e-300), excess


def _squared_error(probes: DiagonalSums, gradients: DiagonalSums) -> Tensor:
    """‖g - H‖² of every tensor as far as groups of batches agree on it, by the weights that are looked at."""
    units = probes.replicate_units
    weights = torch.outer(units, units).fill_diagonal_(0)
    grams = []
    for name in probes.names:
        h, g = (sums.replicates.sums[name].cpu().double() for sums in (probes, gradients))
        apart = h / units.unsqueeze(1).clamp_min(1e-300) - g.sum(0) / gradients.num_units
        grams.append(apart @ apart.T * probes.replicates.scales[name])
    pairs = weights * probes.space.total(torch.stack(grams))
    # every pair is there twice
    found, error = pairs.sum((1, 2)), (2 * pairs.square().sum((1, 2))).sqrt()
    shown = (1 - (CAUTION * error / found.clamp_min(1e-300)).square()).clamp_(min=0)
    return found.clamp(min=0) * shown / weights.sum().clamp_min(1e-300)
