"""The Gauss-Newton diagonal of any loss on a model's outputs, through the loss's own second derivative there.

With z the outputs, J their Jacobian and B = ∂²ℓ/∂z², the matrix is Jᵀ B J.  For independent signs v of the outputs'
shape E (Jᵀ B v) ⊙ (Jᵀ v) is its diagonal: B v is a product with the head alone, and costs next to nothing.  Of all v
with E v vᵀ = 1, signs scatter it least.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.curvature.hvp import default_displacement
from hf_pacgen.curvature.weight_space import Vector, WeightSpace
from hf_pacgen.data.losses import BatchLoss
from hf_pacgen.data.outputs import caught, named_outputs
from hf_pacgen.model.ctc import differentiable_ctc
from hf_pacgen.model.embeddings import dense

__all__ = ["find_outputs", "output_gradients"]

COVERED = 0.3
"""Part of a gradient, at most, that may not come through the outputs, such as that of a router's auxiliary loss."""
EXACT = 1e-2
"""Part of a gradient that rounding may leave over."""
REFUSALS = (RuntimeError, NotImplementedError)


def find_outputs(space: WeightSpace) -> tuple[tuple[str, ...], float] | None:
    """The outputs of the model that its loss is made of, by the first batch, and the part of the gradient beside them.

    None where the loss is not made of outputs, or has no second derivative there.
    """
    objective = space.objective
    if objective.first is None or not space.is_whole:
        return None
    index, batch = objective.first
    space.restore()
    with caught(objective.model) as found, differentiable_ctc():
        total = objective.loss(batch, index).total
    if not total.requires_grad:
        return None
    named = named_outputs(found[-1]) if found else {}
    reached = {}
    for name, output in named.items():
        (slope,) = torch.autograd.grad(total, [output], retain_graph=True, allow_unused=True)
        if slope is not None:
            reached[name] = slope
    parameters = list(objective.parameters.values())
    try:
        whole = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        best: tuple[tuple[str, ...], float] | None = None
        for names in _choices(list(reached)):
            outputs, slopes = [named[n] for n in names], [reached[n] for n in names]
            part = torch.autograd.grad(outputs, parameters, slopes, retain_graph=True, allow_unused=True)
            left = space.norm(_difference(whole, part)) / max(space.norm(_difference(whole, [])), 1e-300)
            if left < (best[1] if best else COVERED):
                best = names, left
            if best and best[1] <= EXACT:
                break
        if best is None:
            return None
        outputs = [named[n] for n in best[0]]
        _curved(total, outputs, 0)
        ways = torch.autograd.grad(total, outputs, create_graph=True)
        constant = {name: way for name, way in zip(best[0], ways, strict=True) if not way.requires_grad}
        return None if constant and _moves(space, constant, batch, index) else best
    except REFUSALS:  # the loss has no second derivative
        return None


def _moves(space: WeightSpace, constant: dict[str, Tensor], batch: Any, index: int) -> bool:
    """Whether slopes of the loss that autograd takes for constant change with the weights.

    Those of a loss that is linear in its outputs do not; those of one whose backward pass has no graph do.
    """
    z = space.trained(space.signs(0, "slopes"))
    try:
        space.displace([(z, default_displacement(space) / math.sqrt(space.num_parameters))])
        with caught(space.objective.model) as found, torch.enable_grad():
            total = space.objective.loss(batch, index).total
        named = named_outputs(found[-1])
        after = torch.autograd.grad(total, [named[name] for name in constant])
    finally:
        space.restore()
    return any(
        float((there - here).norm()) > 100 * torch.finfo(here.dtype).eps * float(here.norm())
        for there, here in zip(after, constant.values(), strict=True)
    )


def output_gradients(
    space: WeightSpace, names: tuple[str, ...], batch: Any, index: int, key: int
) -> tuple[Vector, Vector, BatchLoss]:
    """Jᵀ B v, Jᵀ v and the loss of a batch, at w."""
    objective = space.objective
    space.restore()
    with caught(objective.model) as found, torch.enable_grad(), differentiable_ctc():
        result = objective.loss(batch, index)
    true = BatchLoss(result.total.detach(), result.units)
    if not result.total.requires_grad:
        return {}, {}, true
    named = named_outputs(found[-1])
    outputs = [named[name] for name in names if name in named]
    draws, products = _curved(result.total, outputs, key)
    gradients = []
    for vectors in (products, draws):
        torch.autograd.backward(outputs, vectors, retain_graph=vectors is products)
        gradients.append({name: dense(g) for name, g in space.take_gradient().items()})
    return gradients[0], gradients[1], true


def _curved(total: Tensor, outputs: list[Tensor], key: int) -> tuple[list[Tensor], list[Tensor]]:
    """v and B v."""
    slopes = torch.autograd.grad(total, outputs, create_graph=True)
    draws = []
    for place, output in enumerate(outputs):
        generator = torch.Generator(device=output.device).manual_seed((key + place) & (2**63 - 1))
        draws.append(2 * torch.randint(0, 2, output.shape, generator=generator, device=output.device).to(output) - 1)
    curved = [(slope, v) for slope, v in zip(slopes, draws, strict=True) if slope.requires_grad]
    if not curved:  # linear in its outputs
        return draws, [torch.zeros_like(v) for v in draws]
    ways, along = zip(*curved, strict=True)
    products = torch.autograd.grad(ways, outputs, along, retain_graph=True, allow_unused=True)
    return draws, [torch.zeros_like(v) if p is None else p for p, v in zip(products, draws, strict=True)]


def _choices(names: list[str]) -> Iterator[tuple[str, ...]]:
    """Sets of outputs, the likelier first: logits by themselves and together, then the others."""
    ordered = sorted(names, key=lambda name: "logits" not in name)
    yield from ((name,) for name in ordered)
    logits = tuple(name for name in ordered if "logits" in name)
    if len(logits) > 1:
        yield logits
    if len(ordered) > max(1, len(logits)):
        yield tuple(ordered)


def _difference(whole: Any, part: Any) -> Vector:
    out = {}
    for place, gradient in enumerate(whole):
        other = part[place] if part else None
        if gradient is not None or other is not None:
            first = 0.0 if gradient is None else dense(gradient)
            out[str(place)] = first - dense(other) if other is not None else dense(gradient)
    return out
