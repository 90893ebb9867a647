"""Quantized layers whose products can be differentiated any number of times: from their dequantized weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["dequantize", "dequantized", "is_quantized", "quantized_layers"]

KINDS = ("Params4bit", "Int8Params")
"""Classes of bitsandbytes' weights."""


def quantized_layers(model: nn.Module) -> list[nn.Module]:
    """The linear layers of bitsandbytes in a model, 4-bit and 8-bit."""
    return [m for m in model.modules() if is_quantized(m)]


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer has a weight of bitsandbytes itself."""
    # not by attribute: what wraps such a layer, an adapter, shows its weight as well
    return type(layer._parameters.get("weight")).__name__ in KINDS


@contextmanager
def dequantized(model: nn.Module) -> Iterator[int]:
    """Let quantized layers multiply by their dequantized weights, in float32; yields how many there are.

    The backward pass of bitsandbytes has no derivative (that of 4-bit layers is 0 without an error), and its 8-bit
    layers round their inputs, so that differences of gradients are noise.  A product with fixed weights is linear: its
    derivatives are products as well, and the weights are dequantized anew for each, so none is kept.

    Frozen weights and computations of lower precision are float32 meanwhile, unless weights are trained in it.
    """
    layers = quantized_layers(model)
    if not layers:
        yield 0
        return
    before = [(layer, layer.__dict__.get("forward")) for layer in layers]
    narrow = [p for p in model.parameters() if p.is_floating_point() and 1 < p.element_size() < 4]
    widened = [] if any(p.requires_grad for p in narrow) else [(p, p.data) for p in narrow]
    device = next(model.parameters()).device.type
    with ExitStack() as stack:
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
        try:
            for layer in layers:
                layer.forward = _forward(layer)  # type: ignore[method-assign]
            for parameter, weights in widened:
                parameter.data = weights.float()
            yield len(layers)
        finally:
            for parameter, weights in widened:
                parameter.data = weights
            for layer, forward in before:
                del layer.forward
                if forward is not None:
                    layer.forward = forward


def _forward(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        out = _Product.apply(x.float(), lambda: dequantize(layer), False)
        bias = layer.bias
        return (out if bias is None else out + bias.float()).to(x.dtype)  # type: ignore[operator,union-attr]

    return forward


class _Product(torch.autograd.Function):
    """x Wᵀ, or x W, for weights that are made when they are needed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weights: Callable[[], Tensor], transposed: bool) -> Tensor:  # type: ignore[override]
        matrix = weights()
        return x @ (matrix if transposed else matrix.t())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.weights, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return _Product.apply(gradient, ctx.weights, not ctx.transposed), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Any:  # type: ignore[override]
        return _Product.apply(tangent, ctx.weights, ctx.transposed)


@torch.no_grad()
def dequantize(layer: Any) -> Tensor:
    """The weights of a quantized layer, shape (out, in), in float32."""
    weight = layer.weight
    if type(weight).__name__ == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).float()  # type: ignore[no-any-return]
    # rows of integers with the largest value of each, which 127 stands for
    state = getattr(layer, "state", None)
    rows = getattr(state, "CB", None)
    scale = getattr(state, "SCB", None)
    rows = rows if rows is not None else weight.data
    scale = scale if scale is not None else weight.SCB
    return rows.float() * (scale.float().view(-1, 1) / 127)  # type: ignore[no-any-return]
