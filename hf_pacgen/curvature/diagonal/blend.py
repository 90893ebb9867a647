"""The blend of a quiet, biased estimate with a noisy, unbiased one: D̂ = g + α(h - g) for every parameter tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_pacgen.curvature.diagonal.sums import DiagonalSums
from hf_pacgen.curvature.displacement import chunks
from hf_pacgen.curvature.weight_space import Vector

__all__ = ["blend_", "blend_share"]

CAUTION = 2.0
"""By how many standard deviations of chance a Hutchinson estimate must differ before it counts in a blend."""


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
    """α of D̂ = g + α(h - g) for every tensor: max(0, 1 - q Σ var(h)/Σ (h - g)²), g and h becoming means.

    E‖h - g‖² = ‖H - GGN‖² + var h + var g, so q = 1 would be the α of least expected squared error.  Where
    h - g is mere noise, the ratio scatters around 1 by sqrt(2/r), r the number of entries that share the noise:
    how wild single probes are cancels, as it is in both sums.  q = 1 + CAUTION sqrt(2/r) keeps chance from letting
    the noise in; r = 3 (Σ (h - g)²)²/Σ (h - g)⁴, since Gaussian noise has fourth moments of 3 squares.
    α → 1 as passes grow, whatever q.

    Returns:
        α, and the mean of (H - GGN)² over each tensor as far as it shows beyond the noise.
    """
    noisy, quiet = probes.mean_(), gradients.mean_()
    moments = []
    for name in probes.names:
        found = [torch.zeros(3)]
        for _, (h, g) in chunks(noisy[name], quiet[name]):
            length = torch.linalg.vector_norm(h - g)
            # fourth powers of the entries themselves would underflow
            shape = torch.linalg.vector_norm((h - g) / length.clamp_min(torch.finfo(length.dtype).tiny), ord=4)
            found.append(torch.stack([torch.linalg.vector_norm(h), length, shape]))
        norm, length, shape = torch.stack([row.cpu().double() for row in found]).unbind(1)
        moments.append(torch.stack([norm.square().sum(), length.square().sum(), (length * shape).pow(4).sum()]))
    norms, distances, fourths = probes.space.total(torch.stack(moments)).unbind(1)
    variance = probes.mean_variance(norms)
    if variance is None:
        # one batch shows no spread: trust the quiet one, and do not say by how much it is wrong
        return torch.zeros_like(norms), torch.full_like(norms, torch.nan)
    excess = (distances - variance).clamp_(min=0) / probes.sizes
    distances = distances.clamp_min(1e-300)
    caution = 1 + CAUTION * (2 * fourths / (3 * distances.square()).clamp_min(1e-300)).sqrt()
    return (1 - caution * variance / distances).clamp_(0, 1), excess
