"""How far the matrices of a LoRA adapter reach in the weight that they are added to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hf_pacgen.distributed.shards import is_sharded
from hf_pacgen.model.dequantized import dequantize, is_quantized

__all__ = ["merged_sizes"]


def merged_sizes(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, float | None]:
    """For each matrix B of an adapter W + s B A, the size of its entries that moves W + s B A by the size of W.

    Noise of half-width N on B moves an entry of s B A by s N √(Σ_k A_kj²/3) in root mean square, so the box
    s N ‖A_·j‖ of the merged weight is as wide as W is large where N = rms(W) √d/(s ‖A‖), d columns of A.  B begins at
    0 and stays small, so its own size says nothing about how far it may move.  A has one, as other weights do.  In
    adapters of embeddings PEFT has it the other way round: A begins at 0.

    Args:
        model: with layers of PEFT: linear, convolutions, embeddings, on quantized weights or not.
        parameters: those that are trained, whole or sharded (then a collective: call it on every process).

    Returns:
        rms(W) √d/(s ‖A‖) by the name of B (of A, for embeddings), None where W cannot be read; other parameters, and
        those beside a matrix of zeros, are absent.
    """
    # by name as well: a layer that is sharded at rest has other parameters while its whole weights are at hand
    names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    names |= {id(parameter): name for name, parameter in parameters.items()}
    found: dict[str, float | None] = {}
    for layer in model.modules():
        # of AdaLoRA it is the diagonal E of W + s B E A that begins at 0, which no size is worked out for
        for free in (getattr(layer, "lora_E", None) or {}).values():
            name = names.get(id(free))
            if name is not None and name in parameters:
                found[name] = None
        for key, fixed, free, inner in _pairs(layer):
            name = names.get(id(free))
            if name is None or name not in parameters:
                continue
            size, length = _base_size(layer), _norm(fixed)
            scaling = abs(float(layer.scaling[key]))  # type: ignore[index, arg-type]
            outer = fixed.numel() // max(fixed.shape[inner], 1)
            if length > 0 and scaling > 0:
                found[name] = None if size is None else size * math.sqrt(outer) / (scaling * length)
    return found


def _pairs(layer: Any) -> Iterator[tuple[str, Tensor, Tensor, int]]:
    # of every adapter of a layer: the matrix that has a size, the one that begins at 0, and the first one's inner axis
    if not (hasattr(layer, "scaling") and hasattr(layer, "get_base_layer")):
        return
    down, up = getattr(layer, "lora_A", None) or {}, getattr(layer, "lora_B", None) or {}
    for key in down:
        if key in up and key in layer.scaling and isinstance(down[key], nn.Module):
            yield key, down[key].weight, up[key].weight, 0
    down, up = getattr(layer, "lora_embedding_A", None) or {}, getattr(layer, "lora_embedding_B", None) or {}
    for key in down:
        if key in up and key in layer.scaling:
            yield key, up[key], down[key], 1


@torch.no_grad()
def _base_size(layer: Any) -> float | None:
    # the root mean square of the weight that an adapter is added to; None of one that is packed in a way of its own
    base = layer.get_base_layer()
    weight = getattr(base, "weight", None)
    if not isinstance(weight, Tensor) or weight.is_meta or weight.numel() == 0:
        return None
    if is_quantized(base):
        weight = dequantize(base)
    elif is_traceable_wrapper_subclass(weight) and not is_sharded(weight):
        return None
    return _norm(weight) / math.sqrt(weight.numel()) if weight.is_floating_point() else None


@torch.no_grad()
def _norm(weight: Tensor) -> float:
    norm = torch.linalg.vector_norm(weight.detach(), dtype=torch.promote_types(weight.dtype, torch.float32))
    return float(norm.full_tensor() if is_sharded(norm) else norm)
