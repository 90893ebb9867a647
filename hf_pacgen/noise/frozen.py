"""Noise on the frozen weights under adapters, which is added in the products with them and stored nowhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from hf_pacgen.maths.counter_rng import CenteredBytes, stream_key
from hf_pacgen.model.dequantized import dequantize, is_quantized
from hf_pacgen.noise.layout import CPU_BLOCK, GPU_BLOCK
from hf_pacgen.noise.perturbation import Perturbation, ScaleFunction

REMEDY = "Use recipe='rows', whose noise is on the trained weights."


class FrozenNoise(Perturbation):
    """Noise on the weight W of every linear layer that has a LoRA adapter, W + s B A + u in place of W + s B A.

    u is uniform, of mean 0 and standard deviation ``scale`` · ‖row‖/√n, with the row of the *merged* weight W + s B A
    and n its length (Flat-LoRA, arXiv 2409.14396).  While the noise is on, the layers' forward passes add it to some
    rows of W at a time, and their backward passes draw it again from its key: the weights are never written to, and
    no more than these rows is held besides.  Layers that are quantized, or whose forward pass is not that of
    ``nn.Linear``, give their own product, and that with u is added to it.

    The trained weights have no noise: to the other rooms this is noise on no parameter at all.

    Args:
        model: with adapters of PEFT on linear layers.
        scale: σ above.

    Raises:
        ValueError: no adapters, or some of another kind; weights that are sharded, or packed in an unknown way.
    """

    def __init__(self, model: nn.Module, *, scale: float, block_size: int | None = None) -> None:
        super().__init__({}, model=None)
        self.level = scale
        self.layers = [_Layer.of(name, layer, block_size) for name, layer in _adapted(model)]
        if not self.layers:
            raise ValueError(
                f"Noise on frozen weights goes under the LoRA adapters of PEFT, and {type(model).__name__} has none. "
                f"{REMEDY}"
            )
        sizes: dict[torch.device, int] = {}
        for layer in self.layers:
            sizes[layer.device] = max(sizes.get(layer.device, 0), layer.rows * layer.width)
        self._words = {device: CenteredBytes(size, device=device) for device, size in sizes.items()}

    @property
    def touched(self) -> list[Tensor]:
        """The parameters that have noise."""
        return [weight for layer in self.layers if isinstance(weight := layer.base.weight, Tensor)]

    @torch.no_grad()
    def draw(self, scale: ScaleFunction, *key: str | int, factor: float = 1.0) -> None:
        """Draw u at the level factor · σ, as a function of the key and the layers' names, for the next apply."""
        self.restore()
        for layer in self.layers:
            # of uniform noise the half-width is √3 times the standard deviation; the words are 128 times its numbers
            layer.half_width = layer.row_rms().mul_(math.sqrt(3) * self.level * factor / 128)
            layer.key = stream_key(*key) ^ layer.stream

    def mirror(self) -> None:
        """Turn u into -u."""
        for layer in self.layers:
            layer.half_width = -layer.half_width

    def apply(self) -> None:
        """Let the layers add the last draw."""
        self.restore()
        self.applied = True
        for layer in self.layers:
            layer.put_on(self._words[layer.device])

    def restore(self, *, written: bool = False) -> None:
        """Let the layers be what they were."""
        if self.applied:
            for layer in self.layers:
                layer.take_off()
            self.applied = False

    def follow(self) -> None:
        """Nothing refers to the weights between two draws."""


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if not (hasattr(module, "scaling") and hasattr(module, "get_base_layer")):
            continue
        kind = type(module.get_base_layer()).__name__
        odd = getattr(module, "lora_variant", None) or getattr(module, "lora_E", None)
        if not getattr(module, "lora_A", None) or not getattr(module, "lora_B", None) or odd:
            raise ValueError(
                f"Noise on frozen weights goes under plain LoRA adapters of linear layers; {name!r} is "
                f"{type(module).__name__} on {kind}{' with ' + ', '.join(odd) if odd else ''}. {REMEDY}"
            )
        yield name, module


@dataclass
class _Layer:
    """A linear layer under an adapter, and its noise."""

    adapter: Any
    base: Any
    stream: int
    squares: Tensor  # of the rows of W, shape (out,)
    width: int
    rows: int  # in a block
    half_width: Tensor  # of every row, over 128
    key: int = 0
    before: Any = None  # the forward pass that was set on the layer itself

    @classmethod
    def of(cls, name: str, adapter: Any, block_size: int | None) -> _Layer:
        base = adapter.get_base_layer()
        weight: Any = dequantize(base) if is_quantized(base) else getattr(base, "weight", None)
        problem = None
        if type(weight) not in (Tensor, nn.Parameter) or not weight.is_floating_point():
            problem = f"is a {type(weight).__name__}"
        elif weight.dim() != 2:
            problem = f"has {weight.dim()} dimensions"
        elif weight.requires_grad:
            problem = "is trained"
        if problem is not None:
            raise ValueError(
                f"Noise on frozen weights needs whole matrices of numbers; the weight of {name!r} {problem}. {REMEDY}"
            )
        # GPT-2 keeps the transpose
        weight = weight.T if getattr(adapter, "fan_in_fan_out", False) else weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        with torch.no_grad():
            squares = torch.linalg.vector_norm(weight, dim=1, dtype=wide).square()
        width = weight.shape[1]
        size = block_size or (CPU_BLOCK if weight.device.type == "cpu" else GPU_BLOCK)
        rows = min(len(weight), max(1, size // max(1, width)))
        return cls(adapter, base, stream_key("frozen", name), squares, width, rows, squares)

    @property
    def device(self) -> torch.device:
        return self.squares.device

    def row_rms(self) -> Tensor:
        """‖W_r + (s B A)_r‖/√n of every row, without the merged weight: W A' is the layer's own product with A."""
        down, up = [], []
        for name in self.adapter.active_adapters:
            if name in self.adapter.lora_A and not self.adapter.disable_adapters:
                down.append(self.adapter.lora_A[name].weight)
                up.append(self.adapter.lora_B[name].weight * self.adapter.scaling[name])
        squares = self.squares
        if down:
            a, b = torch.cat(down), torch.cat(up, dim=1)
            product = self.base(a.to(getattr(self.base, "compute_dtype", None) or self._dtype(a)))
            if self.base.bias is not None:
                product = product - self.base.bias
            a, b, product = (t.to(squares.dtype) for t in (a, b, product))
            squares = squares + 2 * (b * product.T).sum(1) + (b * (b @ (a @ a.T))).sum(1)
        return squares.clamp(min=0).div_(self.width).sqrt_()

    def put_on(self, words: CenteredBytes) -> None:
        self.before = self.base.__dict__.get("forward")
        own = self.base.forward
        if type(self.base) is nn.Linear and self.before is None:
            base = self.base
            draw = _Draw(words, self.key, self.half_width, self.rows, self.width, base)

            def forward(x: Tensor) -> Tensor:
                return _Product.apply(x, draw) if base.bias is None else _Product.apply(x, draw) + base.bias  # type: ignore[no-any-return,no-untyped-call]
        else:
            draw = _Draw(words, self.key, self.half_width, self.rows, self.width, None)

            def forward(x: Tensor) -> Tensor:
                product: Tensor = own(x)
                return product + _Product.apply(x, draw).to(product.dtype)  # type: ignore[no-any-return,no-untyped-call]

        self.base.forward = forward

    def take_off(self) -> None:
        del self.base.forward
        if self.before is not None:
            self.base.forward = self.before

    def _dtype(self, a: Tensor) -> torch.dtype:
        weight = self.base.weight
        return weight.dtype if weight.is_floating_point() else a.dtype


@dataclass(frozen=True)
class _Draw:
    """One draw of a layer's noise, made anew for every product."""

    words: CenteredBytes
    key: int
    half_width: Tensor
    rows: int
    width: int
    base: Any  # the layer whose weight is added, None for the noise alone

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows, and W + u or u in them; what is given holds until the next."""
        for start in range(0, len(self.half_width), self.rows):
            here = slice(start, min(start + self.rows, len(self.half_width)))
            count = (here.stop - start) * self.width
            levels = self.words([(stream_key(self.key, start), 0, 0)], count).view(-1, self.width)
            level = self.half_width[here, None]
            if self.base is None:
                yield here, levels.to(level.dtype).mul_(level)
                continue
            weight = self.base.weight[here]
            noisy = torch.addcmul(weight.to(level.dtype), levels.to(level.dtype), level)
            yield here, noisy.to(weight.dtype)


class _Product(torch.autograd.Function):
    """x (W + u)', or x u', some rows at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, draw: _Draw) -> Tensor:  # type: ignore[override]
        ctx.draw, ctx.dtype = draw, x.dtype
        parts = [
            linear(x, rows if torch.is_autocast_enabled(x.device.type) else rows.to(x.dtype))
            for _, rows in draw.blocks()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        total = gradient.new_zeros(*gradient.shape[:-1], ctx.draw.width)
        for here, rows in ctx.draw.blocks():
            total += gradient[..., here] @ rows.to(gradient.dtype)
        return total.to(ctx.dtype), None
