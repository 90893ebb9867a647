"""How often a score goes through a model, forward and backward: counted, or known beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_pacgen.config import Estimator, HVPMethod, ScoreConfig

__all__ = ["PassCounter", "Passes", "diagonal_passes", "products_of", "rho_passes", "sweeps_of", "usual_checks"]

ENOUGH = 8
"""Batches and passes, at least, that a diagonal is made of."""


@dataclass(frozen=True)
class Passes:
    """Forward and backward passes of a batch."""

    forwards: int = 0
    backwards: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.forwards + other.forwards, self.backwards + other.backwards)

    def __sub__(self, other: Passes) -> Passes:
        return Passes(self.forwards - other.forwards, self.backwards - other.backwards)

    def __mul__(self, times: int) -> Passes:
        return Passes(self.forwards * times, self.backwards * times)

    @property
    def cost(self) -> int:
        """In forward passes, a backward pass being two."""
        return self.forwards + 2 * self.backwards

    def to_dict(self) -> dict[str, int]:
        """By name."""
        return {"forwards": self.forwards, "backwards": self.backwards}


FORWARD, GRADIENT = Passes(1, 0), Passes(1, 1)
PRODUCT: dict[HVPMethod, Passes] = {
    HVPMethod.FINITE_DIFFERENCE: Passes(2, 2),
    HVPMethod.REVERSE_OVER_REVERSE: Passes(1, 2),
    HVPMethod.FORWARD_OVER_REVERSE: Passes(1, 1),  # each of numbers with their derivatives
}
"""Of a product by each method that does not stand for another, at the first length of its step."""


class PassCounter:
    """Counts the passes through a model, while :meth:`watching`.

    A pass backward is one that reaches a trainable parameter; what goes through the outputs alone is none.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._forwards = self._inside = 0
        self._reached: dict[int, int] = {}

    @property
    def passes(self) -> Passes:
        """Those so far."""
        return Passes(self._forwards, max(self._reached.values(), default=0) + self._inside)

    @contextmanager
    def watching(self) -> Iterator[PassCounter]:
        """Count, while inside."""

        def forward(*args: Any) -> None:
            self._forwards += 1
            # torch.func differentiates other tensors than the parameters, once for each call
            self._inside += torch._C._functorch.maybe_current_level() is not None

        def backward(place: int) -> Any:
            def hook(gradient: Tensor) -> None:
                self._reached[place] = self._reached.get(place, 0) + 1

            return hook

        handles: list[Any] = [self.model.register_forward_pre_hook(forward)]
        handles += [p.register_hook(backward(i)) for i, p in enumerate(self.model.parameters()) if p.requires_grad]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()


def product_passes(method: HVPMethod) -> Passes:
    """Of one product.

    Raises:
        LookupError: a method that says nowhere what it takes.
    """
    if method not in PRODUCT:
        raise LookupError(f"There is no count of passes for {method!r}: a new method needs its line in PRODUCT.")
    return PRODUCT[method]


def products_of(config: ScoreConfig, batches: int, sweeps: int) -> tuple[int, int]:
    """Products of a batch for ρ and for the diagonal."""
    each = min(config.lipschitz_batches, batches)
    rho = 2 * config.lipschitz_directions * config.lipschitz_iterations * each
    return rho, batches * sweeps * Estimator(config.estimator).facts.needs_products


def rho_passes(config: ScoreConfig, method: HVPMethod | None, batches: int, *, counted: bool = False) -> Passes:
    """Of ρ, without steps that are repeated; ``counted`` where units are known by the loss alone."""
    if not config.lipschitz_directions or method is None:
        return Passes()
    each = min(config.lipschitz_batches, batches)
    start = GRADIENT * (2 * each) + FORWARD * (each if counted else 0)
    return start * config.lipschitz_directions + product_passes(method) * products_of(config, batches, 1)[0]


def sweeps_of(config: ScoreConfig, batches: int) -> int:
    """Passes over the data that the diagonal takes."""
    if Estimator(config.estimator) is Estimator.EXACT:
        return 1
    return config.passes or -(-ENOUGH // max(1, batches))


def diagonal_passes(
    config: ScoreConfig, method: HVPMethod | None, batches: int, parameters: int, *, gradient: Passes = GRADIENT
) -> Passes:
    """Of the diagonal of a loss that is a cross-entropy, or whose Gauss-Newton part takes ``gradient`` a batch.

    Raises:
        ValueError: an estimator of which nothing is known here.
    """
    sweeps, estimator = sweeps_of(config, batches), Estimator(config.estimator)
    if estimator is Estimator.EXACT:
        return Passes(1, 1 + parameters) * batches
    if estimator is Estimator.GAUSS_NEWTON:
        return gradient * (sweeps * batches)
    product = product_passes(method) if method is not None else Passes()
    if estimator is Estimator.HUTCHINSON:  # the loss is taken once, at the weights
        return FORWARD * batches + product * (sweeps * batches)
    if estimator is Estimator.BLEND:
        quiet = 1 if config.passes else sweeps
        return gradient * (quiet * batches) + product * (sweeps * batches)
    raise ValueError(f"There is no count of passes for the estimator {estimator!r}: say it here.")


def usual_checks(config: ScoreConfig, method: HVPMethod | None, *, low_precision: bool) -> Passes:
    """What the checks of the first batch take of a cross-entropy without kinks, where they were not run."""
    # the loss and the same again, and whether it depends on the weights
    found = FORWARD * 2 + GRADIENT
    needs = Estimator(config.estimator).facts.needs_products or config.lipschitz_directions
    kinds: list[HVPMethod | None] = [method] if needs else []
    if Estimator(config.estimator) is Estimator.EXACT:
        kinds.append(HVPMethod.REVERSE_OVER_REVERSE)
    for kind in kinds:
        if kind is None:
            continue
        # the weights and two displacements, then the loss at four more
        product = Passes() if kind.facts.differences else product_passes(kind)
        found += GRADIENT * 3 + (product * 2 if low_precision else product + FORWARD * 4)
    return found
