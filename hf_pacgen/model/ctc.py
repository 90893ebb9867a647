"""Connectionist temporal classification as torch has it, with second derivatives, which torch's does not have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["ctc_loss", "differentiable_ctc"]

IMPOSSIBLE = -1e30
"""The logarithm of 0: finite, since softmax weights of infinities have no derivative."""


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int] | int,
    target_lengths: Tensor | Sequence[int] | int,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """``torch.nn.functional.ctc_loss``, by the forward recursion over frames in logarithms (Graves et al. 2006).

    A target that its frames are too few for has an infinite loss, or 0 with ``zero_infinity``, and no gradient.

    >>> log_probs = torch.full((4, 1, 3), 1 / 3, dtype=torch.float64).log()
    >>> round(ctc_loss(log_probs, torch.tensor([[1, 2]]), [4], [2], reduction="sum").item(), 4)
    1.6864
    """
    single = log_probs.dim() == 2
    if single:
        log_probs = log_probs[:, None]
    device, (steps, count, _) = log_probs.device, log_probs.shape
    frames, lengths = (
        torch.as_tensor(value, dtype=torch.long, device=device).reshape(-1) for value in (input_lengths, target_lengths)
    )
    words = _padded(targets.to(device).long(), lengths, single, blank)
    # blanks before, between and after the labels
    states = torch.full((count, 2 * words.shape[1] + 1), blank, dtype=torch.long, device=device)
    states[:, 1::2] = words
    # from a label to the next without the blank between them, unless they are the same
    skips = torch.zeros_like(states, dtype=torch.bool)
    skips[:, 3::2] = words[:, 1:] != words[:, :-1]
    first = torch.arange(states.shape[1], device=device) < torch.where(lengths > 0, 2, 1)[:, None]
    never = log_probs.new_full((count, 1), IMPOSSIBLE)
    alpha = torch.where(first, log_probs[0].gather(1, states), never)
    for step in range(1, steps):
        one = torch.cat([never, alpha[:, :-1]], 1)
        two = torch.cat([never, never, alpha[:, :-2]], 1)[:, : alpha.shape[1]]
        ways = torch.stack([alpha, one, torch.where(skips, two, never)])
        # those that have ended stay as they are
        alpha = torch.where((step < frames)[:, None], ways.logsumexp(0) + log_probs[step].gather(1, states), alpha)
    last = 2 * lengths[:, None]
    ends = torch.cat([alpha.gather(1, last), alpha.gather(1, (last - 1).clamp(min=0))], 1)
    ends = torch.where(torch.stack([lengths >= 0, lengths > 0], 1), ends, never)
    likelihood = ends.logsumexp(1)
    possible = likelihood > IMPOSSIBLE / 2
    losses = torch.where(possible, -likelihood, 0.0 if zero_infinity else torch.inf)
    if reduction == "none":
        return losses[0] if single else losses
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean":
        return (losses / lengths.clamp(min=1)).mean()
    raise ValueError(f"reduction must be 'none', 'mean' or 'sum'; got {reduction!r}.")


def _padded(targets: Tensor, lengths: Tensor, single: bool, blank: int) -> Tensor:
    """Targets as (examples, labels), whatever stands behind their ends replaced by blanks."""
    longest = int(lengths.max()) if lengths.numel() else 0
    place = torch.arange(longest, device=targets.device)
    within = place < lengths[:, None]
    if targets.dim() == 1 and not single:  # one behind the other
        begins = lengths.cumsum(0) - lengths
        index = (begins[:, None] + place).clamp(max=max(targets.numel() - 1, 0))
        found = targets[index] if targets.numel() else torch.full_like(index, blank)
    else:
        found = targets.reshape(lengths.numel(), -1)[:, :longest]
    return torch.where(within, found, blank)


@contextmanager
def differentiable_ctc() -> Iterator[None]:
    """Let torch's functions and modules for this loss have second derivatives inside."""
    own: Any = functional.ctc_loss
    functional.ctc_loss = ctc_loss
    try:
        yield
    finally:
        functional.ctc_loss = own
