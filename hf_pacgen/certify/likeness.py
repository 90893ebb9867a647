"""Whether a prior is the trained model itself, but for rounding."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SLACK = 1.01  # rounding is at most half a step; what rounds the difference itself is less than this
FEW = 0.01  # share of a tensor's weights that may differ in what is taken for a copy
SMALL = 2.0**-3  # of a tensor's root mean square: smaller weights are rounded as if they were so large
LEAST = 2.0**-24  # the smallest step of float16


def are_alike(center: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Whether a prior's weights are mostly those of the trained model, within the rounding to 16 bits.

    A tensor is a copy if all but 1 % (or one) of its weights differ by at most half a step of bfloat16, as saving in
    16 bits leaves them.  The prior is a copy if more than half of its tensors are, or tensors with more than half of
    its weights.  Tensors that are 0 in both were learned by nobody: an adapter's, before its training.

    >>> trained = {"w": torch.tensor([0.1, -0.2, 0.3]), "b": torch.tensor([1.0, 2.0, 3.0])}
    >>> are_alike({name: w.bfloat16().float() for name, w in trained.items()}, trained)
    True
    >>> are_alike({name: w + 0.01 for name, w in trained.items()}, trained)
    False
    """
    learned = [n for n, value in center.items() if bool(value.any()) or bool(weights[n].detach().any())]
    alike = [n for n in learned if _is_copy(center[n], weights[n].detach())]
    if not alike:
        return False
    sizes = {n: weights[n].numel() for n in learned}
    return 2 * len(alike) > len(learned) or 2 * sum(sizes[n] for n in alike) > sum(sizes.values())


def _is_copy(prior: Tensor, trained: Tensor) -> bool:
    prior, trained = prior.to(trained.device, torch.float32), trained.float()
    # not 0, which has no exponent
    size = trained.abs().clamp(min=max(SMALL * trained.square().mean().sqrt().item(), LEAST))
    # bfloat16 has 8 significant bits: its step at w is 2^(exponent of w - 7), which half of 2^-7 |w| does not exceed
    exponent = torch.frexp(size).exponent - 1  # |w| = f 2^e with f in [1, 2)
    half = torch.ldexp(torch.ones_like(size), exponent - 8).clamp(min=LEAST / 2)
    differing = int(((prior - trained).abs() > SLACK * half).sum())
    return differing < trained.numel() / 2 and differing <= max(1, FEW * trained.numel())
