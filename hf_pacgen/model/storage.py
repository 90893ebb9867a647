"""Parameters that share memory: several names for one weight, which counts once and is displaced once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ["aliases", "independent", "tied", "view_like"]

MOST_DIMENSIONS = 6
"""Of weights whose axes are compared in every order."""


def independent(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The parameters but for those that are other names of an earlier one's memory."""
    others = aliases(parameters)
    return {name: parameter for name, parameter in parameters.items() if name not in others}


def aliases(parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """For every parameter that lies in the memory of an earlier one, whole or with its axes in another order, its name.

    Raises:
        ValueError: two parameters share a part of their memory only, or one has an element twice.
    """
    places = []
    for order, (name, parameter) in enumerate(parameters.items()):
        # shards are asked for elsewhere; what has no memory shares none
        if is_traceable_wrapper_subclass(parameter) or parameter.is_meta or parameter.layout != torch.strided:
            continue
        if not parameter.numel() or not parameter.data_ptr():
            continue
        if any(size > 1 and stride == 0 for size, stride in zip(parameter.shape, parameter.stride(), strict=True)):
            raise ValueError(
                f"The parameter {name!r} is an expanded tensor, whose elements share memory: expected one place for "
                "each. Make it a parameter of its own with .clone()."
            )
        begin = parameter.data_ptr()
        reach = sum((size - 1) * stride for size, stride in zip(parameter.shape, parameter.stride(), strict=True))
        places.append((str(parameter.device), begin, begin + (reach + 1) * parameter.element_size(), order, name))
    found: dict[str, tuple[int, str]] = {}
    open_: list[tuple[str, int, int, int, str]] = []
    for place in sorted(places):
        device, begin, _, order, name = place
        open_ = [other for other in open_ if other[0] == device and other[2] > begin]
        for *_, other_order, other in open_:
            first, second = (other, name) if other_order < order else (name, other)
            if view_like(parameters[first], parameters[second]) is not None:
                if second not in found or min(order, other_order) < found[second][0]:
                    found[second] = (min(order, other_order), first)
            elif _overlap(parameters[first], parameters[second]):
                raise ValueError(
                    f"The parameters {first!r} and {second!r} share a part of their memory, so that neither can be "
                    "changed by itself: expected parameters of their own, or two names of one whole weight. Clone one "
                    "of them, or freeze it."
                )
        open_.append(place)
    return {name: first for name, (_, first) in found.items()}


def view_like(first: Tensor, other: Tensor) -> tuple[int, ...] | None:
    """The order of the first tensor's axes that gives the other, in the same memory; None without one."""
    same = (first.data_ptr(), first.dtype, first.numel(), first.ndim)
    if same != (other.data_ptr(), other.dtype, other.numel(), other.ndim) or first.ndim > MOST_DIMENSIONS:
        return None
    # axes of one element have strides that mean nothing
    target, axes = _form(other), _form(first)
    orders = permutations(range(first.ndim))
    return next((order for order in orders if [axes[i] for i in order] == target), None)


@contextmanager
def tied(model: nn.Module) -> Iterator[None]:
    """Let other names of a trainable weight's memory be that weight, so that autograd knows of it.

    An optimizer's step on one of two parameters with one memory changes both, and a derivative with respect to one of
    them misses the other's part.  Inside, there is one parameter.
    """
    everything = dict(model.named_parameters(remove_duplicate=True))
    trainable = {name: p for name, p in everything.items() if p.requires_grad}
    # those that are trained come first: a frozen name of a trained weight is that weight
    ordered = trainable | {name: p for name, p in everything.items() if not p.requires_grad}
    first_of = {id(ordered[name]): ordered[first] for name, first in _trained(aliases(ordered), trainable).items()}
    owners = [(module, key, p) for module in model.modules() for key, p in module._parameters.items() if p is not None]
    changed: list[tuple[nn.Module, str, nn.Parameter, dict[str, Any], type]] = []
    names = {id(p): (module, key) for module, key, p in reversed(owners)}
    try:
        for module, key, parameter in owners:
            first = first_of.get(id(parameter))
            if first is None:
                continue
            order = view_like(first, parameter)
            changed.append((module, key, parameter, dict(module._parameters), type(module)))
            if order is None or order == tuple(range(first.ndim)):
                module._parameters[key] = first
                continue
            del module._parameters[key]
            module.__class__ = type(type(module).__name__, (type(module),), {key: _axes(*names[id(first)], order)})
        yield
    finally:
        for module, _, _, before, kind in reversed(changed):
            module.__class__ = kind
            module._parameters.clear()
            module._parameters.update(before)


def _trained(found: Mapping[str, str], trainable: Mapping[str, nn.Parameter]) -> dict[str, str]:
    return {name: first for name, first in found.items() if first in trainable}


def _axes(module: nn.Module, key: str, order: tuple[int, ...]) -> property:
    # asked for anew at each use: the weight may be another tensor by then
    return property(lambda self: getattr(module, key).permute(order))


def _form(tensor: Tensor) -> list[tuple[int, int]]:
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return [(size, stride if size > 1 else 0) for size, stride in pairs]


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors whose ranges of memory overlap have an element in common."""
    if first.element_size() != second.element_size():
        return True
    begin, size = min(first.data_ptr(), second.data_ptr()), first.element_size()
    ends = []
    for tensor in (first, second):
        offset = (tensor.data_ptr() - begin) // size
        reach = sum((count - 1) * stride for count, stride in _form(tensor))
        ends.append((offset, offset + reach + 1))
    touched = torch.zeros(max(end for _, end in ends), dtype=torch.bool)
    views = [
        touched.as_strided(t.shape, t.stride(), offset) for t, (offset, _) in zip((first, second), ends, strict=True)
    ]
    views[0].fill_(True)
    return bool(views[1].any())
