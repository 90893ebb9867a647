"""Which parameters count, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy
import torch
from torch import Tensor, nn

from hf_pacgen.distributed.shards import Shards, local

__all__ = [
    "dense",
    "embeddings_of",
    "is_finite",
    "lone_embeddings",
    "only_looked_up",
    "pick_rows",
    "reaches_beyond",
    "trainable_parameters",
]


def trainable_parameters(model: nn.Module, shards: Shards | None = None) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name; tied ones once, frozen ones not at all.

    Raises:
        ValueError: there are none, or one is quantized, not floating-point, on no device, or not finite.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    quantized = [name for name, p in model.named_parameters() if _is_quantized(p)]
    if not found:
        kinds = f"{len(quantized)} of its parameters are integer or quantized. " if quantized else ""
        raise ValueError(
            f"{type(model).__name__} has no trainable parameters: expected at least one with requires_grad=True. "
            f"{kinds}Unfreeze what is to be scored, or add a trainable adapter."
        )
    for name, parameter in found.items():
        if _is_quantized(parameter) or parameter.is_complex():
            raise ValueError(
                f"The trainable parameter {name!r} has dtype {parameter.dtype}"
                f" ({type(parameter).__name__}): expected real floating-point weights of 16 bits or more. "
                "Freeze it, or load the model without quantization."
            )
        if parameter.is_meta:
            raise ValueError(
                f"The parameter {name!r} is on the meta device: its values are offloaded or were never loaded. "
                "Load the model so that every trainable weight is on a device."
            )
        # of a sharded weight every process knows a part, and all must come to the same conclusion
        bad = float(not is_finite(local(parameter)))
        if (shards.sum(bad) if shards is not None else bad) > 0:
            raise ValueError(
                f"The weights {name!r} contain NaN or infinity: expected finite numbers. Score an earlier checkpoint."
            )
    return found


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite; the norm says so in one pass, unless it overflows."""
    norm = torch.linalg.vector_norm(tensor.detach(), dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(norm.isfinite()) or bool(tensor.detach().isfinite().all())


def lone_embeddings(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Embedding]:
    """Embedding layers, by the name of their weights, whose matrix no other module owns."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    found: dict[str, nn.Embedding] = {}
    if _is_compiled(model):
        return found
    for module_name, module in model.named_modules():
        name = f"{module_name}.weight" if module_name else "weight"
        if type(module) is not nn.Embedding or name not in parameters or owners[id(module.weight)] > 1:
            continue
        # rows of the counter-based streams start at words of 64 elements; a sharded weight has other rows
        if module.embedding_dim % 64 == 0 and module.max_norm is None and type(module.weight) is nn.Parameter:
            found[name] = module
    return found


def embeddings_of(model: nn.Module) -> list[nn.Embedding]:
    """Trainable embedding layers whose gradient may be sparse, those that share their matrix too.

    A matrix that is used elsewhere still gets a dense gradient, but no second dense one for the lookup.  PyTorch cannot
    add sparse gradients in float16 on a CPU.
    """
    if _is_compiled(model):
        return []
    return [
        module
        for module in model.modules()
        if type(module) is nn.Embedding
        and type(module.weight) is nn.Parameter
        and module.weight.requires_grad
        and not module.scale_grad_by_freq
        and not (module.weight.dtype == torch.float16 and module.weight.device.type == "cpu")
    ]


def _is_compiled(model: nn.Module) -> bool:
    """Whether a module is compiled in place; such code has neither hooks nor sparse gradients."""
    return any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())


def only_looked_up(weight: Tensor, total: Tensor) -> bool:
    """Whether all that a scalar depends on of an embedding's matrix went through lookups, by the autograd graph."""
    nodes, seen = [total.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for parent, _ in node.next_functions:
            if getattr(parent, "variable", None) is weight and not type(node).__name__.startswith("EmbeddingBackward"):
                return False
            nodes.append(parent)
    return True


def reaches_beyond(gradient: Tensor, rows: Tensor) -> bool:
    """Whether a matrix's gradient has entries outside some rows."""
    if gradient.is_sparse:
        return False
    beyond = gradient.detach().abs().amax(dim=1) > 0
    beyond[rows] = False
    return bool(beyond.any())


def dense(gradient: Tensor) -> Tensor:
    """A gradient of dense layout."""
    if not gradient.is_sparse:
        return gradient
    if gradient.device.type != "cpu" or gradient.dtype not in (torch.float32, torch.float64):
        return gradient.to_dense()
    # numpy's zeros are memory that is not touched before it is read: most rows of an embedding never are
    gradient = gradient.coalesce()
    out = torch.from_numpy(numpy.zeros(gradient.shape, dtype=str(gradient.dtype).removeprefix("torch.")))
    return out.index_copy_(0, gradient.indices()[0], gradient.values())


def pick_rows(gradient: Tensor, rows: Tensor) -> Tensor:
    """Some rows of a matrix's gradient; ``rows`` ascend, and hold all that are there if the gradient is sparse."""
    if not gradient.is_sparse:
        return gradient.index_select(0, rows)
    gradient = gradient.coalesce()
    values = gradient.values()
    picked = values.new_zeros(len(rows), values.shape[1])
    return picked.index_copy_(0, torch.searchsorted(rows, gradient.indices()[0]), values)


def _is_quantized(parameter: Tensor) -> bool:
    small = not (parameter.is_floating_point() or parameter.is_complex()) or parameter.element_size() < 2
    return small or parameter.is_quantized or hasattr(parameter, "quant_state")
