"""A name for the values of a model's weights: the same for the same weights, in and out of a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import xxhash
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hf_pacgen.distributed.shards import is_sharded
from hf_pacgen.model.state import unwrap

__all__ = ["adapter_fingerprint", "tensors_fingerprint", "weights_fingerprint"]

CHUNK = 1 << 24
"""Elements that are converted at a time: a copy of all weights may find no room."""


@torch.no_grad()
def weights_fingerprint(model: nn.Module, *, here: bool = False) -> str | None:
    """A checksum of all parameters, frozen ones too, by their names, shapes and values; None where one cannot be read.

    Floating-point values count as float32, so that weights saved in bfloat16 and loaded in float32 are the same; tied
    weights count once; what an adapter has put aside, buffers, and what is trainable, do not count.  It takes as long
    as reading the weights does.

    Args:
        here: of sharded weights only the part on this process, without asking the others.  By default the whole, for
            which all processes must call this together.

    >>> layer = nn.Linear(2, 2)
    >>> before = weights_fingerprint(layer)
    >>> before == weights_fingerprint(layer.double())
    True
    >>> with torch.no_grad():
    ...     _ = layer.bias.add_(1)
    >>> before == weights_fingerprint(layer)
    False
    """
    digest = xxhash.xxh3_128()
    readable = True
    for name, parameter in unwrap(model).named_parameters():
        if ".original_module." in name:  # put aside by PEFT for a trained copy: at random in a loaded adapter
            continue
        tensor: Any = parameter.detach()
        if is_sharded(tensor):  # one at a time, and to the end: the others wait in a collective
            tensor = tensor.to_local() if here else tensor.full_tensor()
        if tensor.is_meta or is_traceable_wrapper_subclass(tensor) or hasattr(parameter, "ds_id"):
            readable = False
            continue
        _add(digest, name, tensor)
    return digest.hexdigest() if readable else None


def adapter_fingerprint(model: nn.Module) -> str | None:
    """A checksum of the weights that PEFT saves of an adapted model; None of any other, or where one cannot be read.

    It tells adapters apart whose base is quantized, and so packed in another way on another device.
    """
    inner = unwrap(model)
    if not hasattr(inner, "peft_config"):
        return None
    from peft import get_peft_model_state_dict  # there, since the model is its own

    weights = get_peft_model_state_dict(inner, save_embedding_layers=False)
    if any(is_sharded(t) or t.is_meta or is_traceable_wrapper_subclass(t) for t in weights.values()):
        return None
    return tensors_fingerprint(weights)


@torch.no_grad()
def tensors_fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """A checksum of tensors by their names, shapes and values, in whatever order they come.

    >>> one, two = torch.zeros(2), torch.ones(1)
    >>> tensors_fingerprint({"a": one, "b": two}) == tensors_fingerprint({"b": two.double(), "a": one})
    True
    """
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        _add(digest, name, tensors[name].detach())
    return str(digest.hexdigest())


def _add(digest: Any, name: str, tensor: torch.Tensor) -> None:
    digest.update(f"{name} {list(tensor.shape)} ".encode())
    flat = tensor.contiguous().view(-1)
    for start in range(0, flat.numel(), CHUNK):
        part = flat[start : start + CHUNK]
        part = part.float() if part.is_floating_point() else part
        digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
