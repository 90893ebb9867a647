"""By how much gradients were scaled between the backward pass and the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.distributed.shards import Shards, local
from hf_pacgen.model.embeddings import dense
from hf_pacgen.training.hooks import Hook

__all__ = ["GradientRescale", "loss_unscale"]

PROBED_ELEMENTS = 4096
"""Gradient elements that are remembered: enough to tell a factor, few enough to cost nothing."""


def loss_unscale(optimizer: Any) -> Tensor | None:
    """1/S, with S the factor by which accelerate scales the loss in float16; None where it does not."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return None
    return torch.tensor(1.0 / scaler.get_scale())


class GradientRescale:
    """The factor that takes the gradients back to what the backward pass gave.

    Nobody tells by how much gradients were clipped (and, in float16, divided by the loss scale).  So a few small ones
    are remembered as they arrive, g, and compared with what has become of them, c g: the factor is ⟨g, g⟩/⟨g, c g⟩.

    Args:
        parameters: by name; the smallest are remembered.
        optimizer: accelerate's, which knows the loss scale.
        clips: whether gradients are clipped; without clipping and loss scale nothing is done.
        average: over processes, in place: the gradients of a process arrive before they are averaged.  None where
            there is nothing to average.
        shards: where the model is sharded; the gradients of shards arrive averaged, and ⟨·,·⟩ is summed over shards.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        optimizer: Any,
        *,
        clips: bool,
        average: Callable[[Tensor], Tensor] | None,
        shards: Shards | None = None,
    ) -> None:
        self._average = average
        self._shards = shards if shards is not None and shards.active else None
        self._optimizer = None if loss_unscale(optimizer) is None else optimizer
        """None where the loss is not scaled."""
        self._seen: dict[str, Tensor] = {}
        self._parameters: dict[str, Tensor] = {}
        self._others: list[tuple[str, Tensor]] = []
        """Those that are not remembered, the smallest first."""
        self._handles: list[Any] = []
        if not clips and self._optimizer is None:
            return
        count = 0
        self._others = sorted(parameters.items(), key=lambda item: item[1].numel())
        while self._others and (not count or count + self._others[0][1].numel() <= PROBED_ELEMENTS):
            count += self._others[0][1].numel()
            self._watch(0)

    def factor(self) -> Tensor | None:
        """The factor for this step, or None where it is 1; 0 where it cannot be told (the gradients overflowed)."""
        before: list[Tensor] = []
        after: list[Tensor] = []
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                now = self._here(parameter.grad)
                seen = self._seen.get(name, torch.zeros_like(now))  # a gradient may come from other processes only
                device = after[0].device if after else now.device
                before.append(seen.reshape(-1).to(device, torch.float32))
                after.append(now.reshape(-1).to(device, torch.float32))
        self._seen = {}
        if not after:
            return None
        first, last = torch.cat(before), torch.cat(after)
        device = last.device
        if self._average is not None:
            first = self._average(first)
        products = torch.stack([first @ first, first @ last])
        square, product = products if self._shards is None else self._shards.sum_(products)
        if device.type == "cpu" and square == 0 and self._watch_another():
            return torch.zeros(())  # those remembered have no gradient; from the next step on another is too
        factor = torch.where(square > 0, square / product, 1.0).nan_to_num(0.0, 0.0, 0.0)
        unscale = None if self._optimizer is None else loss_unscale(self._optimizer)
        return factor if unscale is None else factor * unscale.to(device)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _watch(self, index: int) -> None:
        name, parameter = self._others.pop(index)
        self._parameters[name] = parameter

        def remember(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self._seen[name] = self._here(parameter.grad).clone()

        self._handles.append(parameter.register_post_accumulate_grad_hook(Hook(remember)))

    def _watch_another(self) -> bool:
        """Remember the smallest of the others with a gradient that is not 0; False where there is none."""
        for index, (_, parameter) in enumerate(self._others):
            if parameter.grad is not None and bool(self._here(parameter.grad).any()):
                self._watch(index)
                return True
        return False

    def _here(self, gradient: Tensor) -> Tensor:
        """The part of a gradient on this process, dense."""
        here = gradient.detach() if self._shards is None else local(gradient.detach())
        return dense(here) if here.is_sparse else here
