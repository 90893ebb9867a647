"""By how much gradients were scaled between the backward pass and the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.noise.perturbation import Perturbation
from hf_pacgen.training.hooks import Hook

PROBED_ELEMENTS = 4096  # of gradients that are remembered: enough to tell a factor, few enough to cost nothing


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

    Without clipping (``clips``) and without a loss scale of accelerate's ``optimizer`` nothing is done.  ``average`` is
    over processes, in place: the gradients of a process arrive before they are averaged.
    """

    def __init__(
        self, noise: Perturbation, optimizer: Any, *, clips: bool, average: Callable[[Tensor], Tensor] | None
    ) -> None:
        self._noise, self._average = noise, average
        self._optimizer = None if loss_unscale(optimizer) is None else optimizer  # None where the loss is not scaled
        self._seen: dict[str, Tensor] = {}
        self._handles: dict[str, Any] = {}
        self._others: list[str] = []  # those that are not remembered, the smallest first
        if not clips and self._optimizer is None:
            return
        size, count = {name: p.numel() for name, p in noise.parameters.items()}, 0
        self._others = sorted(size, key=lambda name: size[name])
        while self._others and (not count or count + size[self._others[0]] <= PROBED_ELEMENTS):
            count += size[self._others[0]]
            self._watch(self._others[0])

    def factor(self) -> Tensor | None:
        """The factor for this step, or None where it is 1; 0 where it cannot be told (the gradients overflowed)."""
        now = {name: gradient for name in self._handles if (gradient := self._noise.gradient(name)) is not None}
        # a gradient may come from other processes only
        then = [self._seen.get(name, torch.zeros_like(gradient)) for name, gradient in now.items()]
        self._seen = {}
        if not now:
            return None
        device = then[0].device
        first, last = (torch.cat([g.reshape(-1).to(device, torch.float32) for g in gs]) for gs in (then, now.values()))
        if self._average is not None:
            first = self._average(first)
        square, product = self._noise.total(torch.stack([first @ first, first @ last]))
        if device.type == "cpu" and square == 0 and self._watch_another():
            return torch.zeros(())  # those remembered have no gradient; from the next step on another is too
        # a gradient that was not finite tells nothing, whatever others have made of it
        factor = torch.where(square == 0, 1.0, square / product).nan_to_num(0.0, 0.0, 0.0)
        unscale = None if self._optimizer is None else loss_unscale(self._optimizer)
        return factor if unscale is None else factor * unscale.to(device)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles.values():
            handle.remove()
        self._handles = {}

    def _watch(self, name: str) -> None:
        def remember(parameter: Tensor) -> None:
            if (gradient := self._noise.gradient(name)) is not None:
                self._seen[name] = gradient.clone()

        self._others.remove(name)
        parameter = self._noise.parameters[name]
        self._handles[name] = parameter.register_post_accumulate_grad_hook(Hook(remember))

    def _watch_another(self) -> bool:
        """Remember the smallest of the others with a gradient that is not 0; False where there is none."""
        for name in self._others:
            if (gradient := self._noise.gradient(name)) is not None and bool(gradient.any()):
                self._watch(name)
                return True
        return False
