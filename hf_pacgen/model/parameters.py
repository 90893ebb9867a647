"""Which parameters count, and which cannot."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hf_pacgen.model.storage import independent

__all__ = ["is_finite", "trainable_parameters"]


def trainable_parameters(
    model: nn.Module, finite: Callable[[Tensor], bool] | None = None, *, bare: bool = False
) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name; tied ones and those of one memory once, frozen ones not at all.

    Args:
        finite: whether all elements of a weight are finite numbers; by default looked at here.
        bare: whether weights may be on the meta device.

    Raises:
        ValueError: there are none, or one is quantized, not floating-point, on no device, not finite, or shares a part
            of its memory with another.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        quantized = sum(_is_quantized(p) for p in model.parameters())
        kinds = f"{quantized} of its parameters are integer or quantized. " if quantized else ""
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
        if parameter.is_meta and not bare:
            raise ValueError(
                f"The parameter {name!r} is on the meta device: its values are offloaded or were never loaded. "
                "Load the model so that every trainable weight is on a device."
            )
        if not (parameter.is_meta or (finite or is_finite)(parameter)):
            raise ValueError(
                f"The weights {name!r} contain NaN or infinity: expected finite numbers. Score an earlier checkpoint."
            )
    return found if any(p.is_meta for p in found.values()) else independent(found)


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite; the norm says so in one pass, unless it overflows."""
    norm = torch.linalg.vector_norm(tensor.detach(), dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(norm.isfinite()) or bool(tensor.detach().isfinite().all())


def _is_quantized(parameter: Tensor) -> bool:
    small = not (parameter.is_floating_point() or parameter.is_complex()) or parameter.element_size() < 2
    return small or parameter.is_quantized or hasattr(parameter, "quant_state")
