"""Checksums of tensors and of batches, by their bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.data.contents import batch_tensors
from hf_pacgen.maths.counter_rng import mixed

__all__ = ["batch_checksum", "checksum"]

WORDS = 1 << 20
"""Elements added up at a time."""
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def batch_checksum(batch: Any) -> int:
    """A checksum of the tensors of a batch; what else is in it does not count."""
    return _wrap(sum((2 * i + 1) * checksum(tensor) for i, tensor in enumerate(batch_tensors(batch))))


@torch.no_grad()
def checksum(tensor: Tensor) -> int:
    """Σ_i hash(b_i, i) modulo 2⁶⁴, b the bits of the elements as integers, computed where the tensor is.

    >>> checksum(torch.tensor([1, 2])) == checksum(torch.tensor([1, 2])) != checksum(torch.tensor([2, 1]))
    True
    """
    total = 0
    for start, bits in _bits(tensor.detach()):
        places = torch.arange(start + 1, start + len(bits) + 1, device=bits.device)
        # a sum of products would not tell small integers, such as labels, that have changed places
        total += int(mixed(places.mul_(1 << 32).add_(mixed(bits.to(torch.int64, copy=True)))).sum())
    return _wrap(total)


def _bits(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    flat = tensor.contiguous().view(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    kind = BITS[flat.element_size()]
    for start in range(0, flat.numel(), WORDS):
        yield start, flat[start : start + WORDS].view(kind)


def _wrap(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)
