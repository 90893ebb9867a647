"""Displacement of the weights uphill, along a gradient, in place of noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.facts import Choice
from hf_pacgen.noise.perturbation import Perturbation, ScaleFunction
from hf_pacgen.noise.products import Gradients

PREFIX = "direction."  # of the names of its tensors in the noise state of a checkpoint


class Held(Choice):
    """What lies in the twins of the weights; a member's facts are whether it can be put on the weights."""

    facts: bool

    NOTHING = "nothing", False
    GRADIENT = "gradient", False
    WEIGHTS = "weights", True


class Ascent:
    """The weights w + u, with u = factor · σ² g/‖σ g‖, where ⟨g, u⟩ is largest among all u with Σ u_i²/σ_i² ≤ factor².

    σ is what a shape gives as the level of noise, and the norm is over all weights, of all processes that share them.
    Where σ is the same number r everywhere, u = r g/‖g‖ (SAM, arXiv 2010.01412; with the gradient of an earlier step
    Momentum-SAM, arXiv 2401.12033); with σ = r|w| it is ASAM's (arXiv 2102.11600); with σ = r N, N the box of the
    PAC-Bayes bound, u = r N² g/‖N g‖.  The size of g has no influence, so neither has a loss scale or clipping.

    The gradient is kept where w + u will be: in the twins of the weights, which lie idle between the optimizer's step
    and the next one's beginning.  So an ascent takes no more memory than noise does.

    Args:
        scale: σ of a block.
        one_level: σ, where it is the same everywhere, which is done without.
    """

    def __init__(self, noise: Perturbation, scale: ScaleFunction, one_level: float | None = None) -> None:
        self.noise, self._scale, self._one_level = noise, scale, one_level
        self.held = Held.NOTHING

    @torch.no_grad()
    def hold(self, gradients: Gradients, average: Callable[[Tensor], Tensor] | None = None) -> None:
        """Keep gradients (None is 0) for the next :meth:`move`; ``average`` is over processes, in place."""
        self.noise.restore()
        for block in self.noise.layout.blocks:
            self.noise.twin(block).copy_(self.noise.layout.gather(block, gradients))
        if average is not None:
            for block in self.noise.layout.blocks:
                average(self.noise.twin(block))
        self.held = Held.GRADIENT

    @torch.no_grad()
    def move(self, factor: float) -> bool:
        """Turn the gradient that is held into w + u; False, and nothing is held, where it shows no direction.

        That is where it is 0, or not finite: then the optimizer's step with it was none either.
        """
        if self.held is not Held.GRADIENT:
            self.forget()
            return False
        self.noise.follow()
        norm = self._norm()
        if not 0 < norm < math.inf:
            self.forget()
            return False
        for block in self.noise.layout.blocks:
            weights, twin = self.noise.weights_of(block), self.noise.twin(block)
            if self._one_level is not None and twin.dtype == weights.dtype:
                torch.add(weights, twin, alpha=factor * self._one_level**2 / norm, out=twin)
                continue
            sigma = self._scale(block, weights)
            steep = twin.to(weights.dtype) * sigma
            twin.copy_(torch.addcmul(weights, steep, sigma, value=factor / norm))
        self.held = Held.WEIGHTS
        return True

    def forget(self) -> None:
        """Hold nothing."""
        self.held = Held.NOTHING

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a resumed run needs: the twins by the parameters' names, and what they are."""
        tensors = {} if self.held is Held.NOTHING else self.noise.twins()
        return self.noise.like_parameters(tensors), {"direction": self.held.value}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave, or the same as whole tensors; states without a direction have none."""
        held = Held(values.get("direction", Held.NOTHING.value))
        if held is not Held.NOTHING:
            mine = {name: parameter.shape for name, parameter in self.noise.parameters.items()}
            if mine != {name: tensor.shape for name, tensor in tensors.items()}:
                odd = sorted(mine.keys() ^ tensors.keys())
                raise ValueError(
                    f"The direction in the noise state belongs to other trainable parameters (different: "
                    f"{odd[:5] or 'shapes'}). Resume with the same model, or remove the file to begin without a "
                    "direction."
                )
            for name, twin in self.noise.twins().items():
                twin.copy_(self.noise.part(name, tensors[name]))
        self.held = held

    def _norm(self) -> float:
        """‖σ g‖, over all weights."""
        squares: dict[torch.device, list[Tensor]] = {}
        for block in self.noise.layout.blocks:
            twin = self.noise.twin(block)
            if self._one_level is not None:
                steep = twin.to(block.wide)
            else:
                steep = self._scale(block, self.noise.weights_of(block)).mul_(twin)
            squares.setdefault(block.pool[0], []).append(steep.dot(steep))
        # one wait for each device; in Python's numbers, since not every device has float64
        total = sum(sum(torch.stack(of_device).tolist()) for of_device in squares.values())
        if self.noise.divided:
            total = self.noise.total(torch.tensor(total, dtype=torch.float64, device=next(iter(squares)))).item()
        return math.sqrt(total) * (1.0 if self._one_level is None else self._one_level)
