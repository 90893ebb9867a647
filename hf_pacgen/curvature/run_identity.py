"""What a run is of: checksums by which two processes, or two sittings, know that they do the same work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.config.settings import Config
from hf_pacgen.data.collation import batch_tensors
from hf_pacgen.data.objective import Objective
from hf_pacgen.distributed.shards import is_sharded

__all__ = ["BUFFERS", "batch_checksum", "checksum", "differences", "identity"]

WORDS = 1 << 20
"""Elements added up at a time."""
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
BUFFERS = "the values of the buffer"
"""The group of what DistributedDataParallel lets differ between processes, such as running statistics."""
MOST_NAMED = 5
"""Differences that are spelled out in a message."""


def identity(objective: Objective, config: Config) -> dict[str, dict[str, Any]]:
    """Settings, model, loss and data of an inspected objective, as JSON-able values by group and name.

    Weights and buffers count with their values, frozen ones too; data with its length and its first batch.
    """
    model, batches = objective.model, objective.batches
    tensors = {
        name: tensor for name, tensor in (*model.named_parameters(), *model.named_buffers()) if not tensor.is_meta
    }
    buffers = [name for name, _ in model.named_buffers()]
    loss = objective.loss_fn
    return {
        "the setting": config.to_dict(),
        "the": {
            "class of the model": type(model).__name__,
            "loss": objective.kind.value if loss is None else getattr(loss, "__qualname__", type(loss).__name__),
            "length of the data": batches.length(),
            "batch size": batches.batch_size if batches.indices is not None else None,
        },
        "the form of": {
            name: f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}{' trainable' if t.requires_grad else ''}"
            for name, t in tensors.items()
        },
        # every process has other shards
        "the values of": {name: checksum(t) for name, t in tensors.items() if name not in buffers and not is_sharded(t)}
        | {"the first batch of the data": batch_checksum([batch for _, batch in batches.head(1)])},
        BUFFERS: {name: checksum(tensors[name]) for name in buffers if name in tensors},
    }


def differences(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]], *, there: str, here: str
) -> str:
    """What differs between two identities, in words; empty where nothing does.

    Args:
        there, here: how to name the two, as in "0 in the checkpoint and 1 now".
    """
    found = []
    for group in now:
        old, new = before.get(group, {}), now[group]
        for name in (*new, *(n for n in old if n not in new)):
            if name not in new or name not in old:
                found.append(f"{group} {name} (only {here if name in new else there})")
            elif old[name] != new[name] and group.startswith("the values of"):
                found.append(f"{group} {name}")
            elif old[name] != new[name]:
                found.append(f"{group} {name} ({old[name]} {there} and {new[name]} {here})")
    more = f", and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return ", ".join(found[:MOST_NAMED]) + more


def batch_checksum(batch: Any) -> int:
    """A checksum of the tensors of a batch; what else is in it does not count."""
    return _wrap(sum((2 * i + 1) * checksum(tensor) for i, tensor in enumerate(batch_tensors(batch))))


@torch.no_grad()
def checksum(tensor: Tensor) -> int:
    """Σ_i (2i + 1) b_i modulo 2⁶⁴, b the bits of the elements as integers, computed where the tensor is.

    >>> checksum(torch.tensor([1, 2])) == checksum(torch.tensor([1, 2])) != checksum(torch.tensor([2, 1]))
    True
    """
    total = 0
    for start, bits in _bits(tensor.detach()):
        weights = torch.arange(2 * start + 1, 2 * (start + len(bits)) + 1, 2, device=bits.device)
        total += int(weights.mul_(bits).sum())
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
