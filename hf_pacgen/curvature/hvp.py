"""Hessian-vector products of one batch's summed loss, by three methods, and how ``auto`` chooses.

Costs, in gradients of a batch: finite differences 2, reverse over reverse about 3.7 in time,
forward over reverse about 4.6 (MiniLM, float32, CPU).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from hf_pacgen.config import HVPMethod
from hf_pacgen.curvature.displacement import Direction, RademacherDirection, Terms
from hf_pacgen.curvature.weight_space import Vector, WeightSpace
from hf_pacgen.data.losses import BatchLoss
from hf_pacgen.data.objective import Objective
from hf_pacgen.model.precision import full_precision
from hf_pacgen.model.state import (
    evaluation_mode,
    transformable,
    twice_differentiable,
    uses_reentrant_checkpointing,
)

__all__ = ["HessianProduct", "choose_method", "default_displacement", "traced_product"]

RELATIVE_DISPLACEMENT = {torch.float32: 5e-4, torch.float64: 1e-5}
"""‖h z‖ as a fraction of ‖w‖: near (rounding error)^(1/3), where truncation and rounding balance."""
MOST_ATTEMPTS = 6
"""How often a step that proves too long is shortened (by up to 30 times each)."""


def choose_method(space: WeightSpace, method: HVPMethod | str = HVPMethod.AUTO) -> HVPMethod:
    """The method that ``auto`` stands for: finite differences where weights and compute are float32.

    Float64 is asked for by those who want exact numbers, and low precision makes differences noise: both get
    reverse over reverse.

    Raises:
        ValueError: finite differences were asked for where weights or compute are of low precision.
    """
    method = HVPMethod(method)
    asked = method.facts
    if method in space.resolved:
        return space.resolved[method]
    dtypes = {parameter.dtype for parameter in space.objective.parameters.values()}
    wide = dtypes <= RELATIVE_DISPLACEMENT.keys() and not space.objective.low_precision
    if asked.differences and not wide:
        raise ValueError(
            "hvp='finite_difference' needs float32 weights and float32 compute: differences of low-precision gradients "
            "are noise. Use hvp='auto', load the weights in float32, or leave the autocast context."
        )
    if not space.has_second_derivatives:
        if not wide or not (asked.differences or asked.chooses):
            raise ValueError(
                "A model that is sharded by fully_shard has no second derivatives, so its products are finite "
                "differences, which need hvp='auto' or 'finite_difference', and float32 weights and compute; got "
                f"hvp={method.value!r}{'' if wide else ' and lower precision'}. Load it in float32, without a "
                "MixedPrecisionPolicy of lower precision."
            )
        return HVPMethod.FINITE_DIFFERENCE
    if asked.chooses:
        single = wide and dtypes == {torch.float32}
        return HVPMethod.FINITE_DIFFERENCE if single else HVPMethod.REVERSE_OVER_REVERSE
    return method


def default_displacement(space: WeightSpace) -> float:
    """‖h z‖ that suits the coarsest precision in sight, of the weights or the loss.

    Causal models take their loss in float32 whatever their weights are: a step made for float64 would drown in its
    rounding.
    """
    dtypes = {parameter.dtype for parameter in space.objective.parameters.values()} | {space.objective.loss_dtype}
    return max(RELATIVE_DISPLACEMENT.get(dtype, 0.0) for dtype in dtypes) * space.scale


class HessianProduct:
    """H_b v for the summed loss of a batch b, at the weights or displaced from them.

    A finite difference along a vector that leans on sharp directions (a gradient, a Lanczos vector) needs a
    far shorter step than one along random signs.  Its truncation error shows without further gradients: two
    losses and two slopes along v give L‴, and a step that makes L‴ visible is repeated, shorter.

    Args:
        space: the weights, whose displacement all share who displace them.
        method: a member of :class:`HVPMethod`; ``auto`` is resolved, see :attr:`method`.
        displacement: norm of the displacement of a finite difference; by default it is chosen, and controlled.
        asymmetry: how much of L‴ a controlled step may show; the relative error is about 1.5 times its square.
    """

    def __init__(
        self,
        space: WeightSpace,
        method: HVPMethod | str = HVPMethod.AUTO,
        *,
        displacement: float | None = None,
        asymmetry: float = 0.003,
    ) -> None:
        self.space, self.objective = space, space.objective
        self.method = choose_method(space, method)
        self.controlled = displacement is None
        self.asymmetry = asymmetry
        self.longest = 0.0
        if self.method not in PRODUCTS:
            raise LookupError(f"There is no product by {self.method!r}: a new method needs its function in PRODUCTS.")
        facts = self.method.facts
        if facts.differences:
            self.longest = displacement if displacement is not None else default_displacement(space)
        if not facts.differences or not self.controlled:
            # not later: a pass over the data seeds the random numbers, and a random loss would repeat itself
            self.objective.confirm_deterministic()
        self._current: dict[bool, float] = {}
        """The step's length that the last product found good, away from the weights and at them."""
        through = facts.passes_reentrant or not uses_reentrant_checkpointing(self.objective.model)
        through = through and facts.passes_checkpoints
        evaluation_mode(self.objective.model, checkpointing=self.objective.checkpointing and through)

    def start_at(self, fraction: float) -> None:
        """Begin controlled steps at a fraction of the default, where sharp directions are to be expected."""
        self._current = dict.fromkeys((False, True), fraction * self.longest)

    def reset(self, *, keep: bool = False) -> None:
        """Forget the step lengths learned so far; with ``keep``, start from the present one ever after."""
        if keep:
            self.longest = min(self.longest, self._current.get(False, self.longest))
        self._current.clear()

    def __call__(
        self, batch: Any, index: int, direction: Direction, *, norm: float | None = None, at: Terms = ()
    ) -> tuple[Vector, float]:
        """H_b v by parameter name, and the batch's number of loss units.

        Parameters that the loss does not reach are absent: their part is 0.  The part of an embedding may be sparse.

        Args:
            batch, index: the batch and its number (named in errors).
            direction: v.
            norm: ‖v‖; by default √m, the norm of a vector of signs.
            at: displacement from w, as terms (direction, scale).
        """
        return PRODUCTS[self.method](self, batch, index, direction, norm, at)

    def _finite_difference(
        self, batch: Any, index: int, direction: Direction, norm: float | None, at: Terms
    ) -> tuple[Vector, float]:
        """(∇L(w + hv) - ∇L(w - hv))/(2h), with ‖hv‖ the displacement."""
        norm = math.sqrt(self.space.num_parameters) if norm is None else norm
        away = bool(at)
        displacement = self._current.get(away, self.longest)
        # signs in all coordinates are never aligned with anything, so the default step suits them
        controlled = self.controlled and not isinstance(direction, RademacherDirection)
        direction = self.space.trained(direction)
        for _ in range(MOST_ATTEMPTS):
            gradients: Vector = {}  # those of the last attempt, if any, are not kept beside the next
            with full_precision():
                gradients, units, asymmetry = self._difference(
                    batch, index, direction, displacement / norm, at, norm if controlled else None
                )
            if not controlled:
                break
            factor = 0.7 * self.asymmetry / max(asymmetry, 1e-12)
            shorter = displacement * min(max(factor, 0.03), 4.0)
            self._current[away] = min(shorter, self.longest)
            if asymmetry <= self.asymmetry:
                break
            displacement = self._current[away]
            self.space.restore()
            self.objective.confirm_deterministic()  # a loss that is not looks as if no step were short enough
        return gradients, units

    def _difference(
        self, batch: Any, index: int, direction: Direction, step: float, at: Terms, norm: float | None
    ) -> tuple[Vector, float, float]:
        """The central difference, the batch's units, and |h(s₊ + s₋) - (L₊ - L₋)| / (h ‖g₊ - g₋‖ ‖v‖).

        s are the slopes along v; the numerator is (2/3) h³ |L‴|, 0 where it is below rounding.
        The second gradient accumulates onto the first, which has the opposite sign: one buffer, not two.
        """
        space, losses, slopes, units = self.space, [], [], 0.0
        for sign in (1.0, -1.0):
            space.displace([*at, (direction, sign * step)])
            result = space.add_gradient(batch, index, sign / (2 * step))
            units = result.units
            if norm is not None:
                losses.append(result.total.item())
                slopes.append(space.slope(direction, index))
            for parameter in self.objective.parameters.values():
                if parameter.grad is not None and parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.coalesce()  # a row for every token becomes one for every word
        gradients = space.take_gradient()
        if norm is None:
            return gradients, units, 0.0
        # slopes[0] is c s₊ and slopes[1] is c (s₊ - s₋), with c = 1/(2 step)
        gap = step * (2 * slopes[0] - slopes[1]) * 2 * step - (losses[0] - losses[1])
        if abs(gap) <= 16 * torch.finfo(torch.float32).eps * max(map(abs, losses), default=0.0):
            return gradients, units, 0.0  # below rounding
        whole = step * space.norm(gradients) * 2 * step * norm
        return gradients, units, abs(gap) / whole if whole > 0 else 0.0


def _exactly(
    way: Callable[[Objective, Any, int, Vector], tuple[Vector, float]],
    product: HessianProduct,
    batch: Any,
    index: int,
    direction: Direction,
    norm: float | None,
    at: Terms,
) -> tuple[Vector, float]:
    """The product by derivatives of the gradient, whatever the norm of the vector."""
    objective = product.objective
    product.space.displace(at, whole=product.method.facts.reads_all_rows)
    stored = product.space.stored(product.space.trained(direction))
    vector = {name: stored[name].to(parameter.dtype) for name, parameter in objective.parameters.items()}
    with twice_differentiable(objective.model):
        return way(objective, batch, index, vector)


def _reverse_over_reverse(objective: Objective, batch: Any, index: int, vector: Vector) -> tuple[Vector, float]:
    names = list(objective.parameters)
    parameters = list(objective.parameters.values())
    result = objective.loss(batch, index)
    gradients = torch.autograd.grad(result.total, parameters, create_graph=True, allow_unused=True)
    terms = [
        (gradient * vector[name]).sum()
        for name, gradient in zip(names, gradients, strict=True)
        if gradient is not None and gradient.requires_grad
    ]
    if not terms:
        return {}, result.units  # the loss is linear in the weights
    inner = torch.stack([term.to(terms[0].device, torch.promote_types(term.dtype, torch.float32)) for term in terms])
    products = torch.autograd.grad(inner.sum(), parameters, allow_unused=True)
    return {n: product for n, product in zip(names, products, strict=True) if product is not None}, result.units


def _forward_over_reverse(objective: Objective, batch: Any, index: int, vector: Vector) -> tuple[Vector, float]:
    # The objective is called through a module that holds the model, so that a user's loss_fn(model, batch)
    # sees the substituted weights too.
    shell = _LossModule(objective)
    weights = {f"model.{name}": p.detach() for name, p in objective.parameters.items()}
    tangents = {f"model.{name}": tangent for name, tangent in vector.items()}

    units: list[float] = []

    def total(parameters: Vector) -> Tensor:
        result = torch.func.functional_call(shell, parameters, (batch, index))
        units.append(result.units)
        return result.total

    with transformable(objective.model):
        products: Any = torch.func.jvp(torch.func.grad(total), (weights,), (tangents,))[1]
    return {name: products[f"model.{name}"] for name in objective.parameters}, units[-1]


class _LossModule(nn.Module):
    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = objective.model, objective

    def forward(self, batch: Any, index: int) -> BatchLoss:
        return self.objective.loss(batch, index)


def traced_product(
    method: HVPMethod,
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    loss: Callable[[], BatchLoss],
    vector: Vector,
) -> Callable[[], object]:
    """The work of a product by derivatives, of a model and its parameters that are no objective's."""
    ways: dict[HVPMethod, Callable[..., object]] = {
        HVPMethod.REVERSE_OVER_REVERSE: _reverse_over_reverse,
        HVPMethod.FORWARD_OVER_REVERSE: _forward_over_reverse,
    }
    if method not in ways:
        raise LookupError(f"There is no product by derivatives called {method!r}: name its function here.")
    bare = SimpleNamespace(model=model, parameters=parameters, loss=lambda batch, index: loss())

    def work() -> None:
        with twice_differentiable(model):
            ways[method](bare, None, 0, vector)

    return work


PRODUCTS: dict[HVPMethod, Callable[..., tuple[Vector, float]]] = {
    HVPMethod.FINITE_DIFFERENCE: HessianProduct._finite_difference,
    HVPMethod.REVERSE_OVER_REVERSE: partial(_exactly, _reverse_over_reverse),
    HVPMethod.FORWARD_OVER_REVERSE: partial(_exactly, _forward_over_reverse),
}
"""``product(self, batch, index, direction, norm, at)`` of every method that does not stand for another."""
