"""Hessian-vector products of one batch's summed loss, by three methods, and how ``auto`` chooses.

Costs, in gradients of a batch: finite differences 2, reverse over reverse about 3.7 in time,
forward over reverse about 4.6 (SCIENCE: MiniLM, float32, CPU).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hf_pacgen.config import HVPMethod
from hf_pacgen.data.losses import BatchLoss
from hf_pacgen.data.objective import Objective
from hf_pacgen.distributed.shards import local
from hf_pacgen.model.displacement import Direction, RademacherDirection, Rows, SavedWeights, Terms, chunks
from hf_pacgen.model.parameters import dense, pick_rows
from hf_pacgen.model.state import (
    double_backward_attention,
    evaluation_mode,
    full_precision,
    transformable,
    uses_reentrant_checkpointing,
)

__all__ = ["HessianProduct", "batch_gradient", "choose_method", "default_displacement", "take_gradients"]

RELATIVE_DISPLACEMENT = {torch.float32: 5e-4, torch.float64: 1e-5}
"""‖h z‖ as a fraction of ‖w‖: near (rounding error)^(1/3), where truncation and rounding balance."""
MOST_ATTEMPTS = 6
"""How often a step that proves too long is shortened (by up to 30 times each)."""


def choose_method(objective: Objective, method: HVPMethod | str = HVPMethod.AUTO) -> HVPMethod:
    """The method that ``auto`` stands for: finite differences where weights and compute are float32.

    Float64 is asked for by those who want exact numbers, and low precision makes differences noise: both get
    reverse over reverse.

    Raises:
        ValueError: finite differences were asked for where weights or compute are of low precision.
    """
    method = HVPMethod(method)
    weights_are_wide = all(p.dtype in RELATIVE_DISPLACEMENT for p in objective.parameters.values())
    wide = weights_are_wide and not objective.low_precision
    if method is HVPMethod.FINITE_DIFFERENCE and not wide:
        raise ValueError(
            "hvp='finite_difference' needs float32 weights and float32 compute: differences of low-precision gradients "
            "are noise. Use hvp='auto', load the weights in float32, or leave the autocast context."
        )
    if objective.shards.active:
        if not wide or method not in (HVPMethod.AUTO, HVPMethod.FINITE_DIFFERENCE):
            raise ValueError(
                "A model that is sharded by fully_shard has no second derivatives, so its products are finite "
                "differences, which need hvp='auto' or 'finite_difference', and float32 weights and compute; got "
                f"hvp={method.value!r}{'' if wide else ' and lower precision'}. Load it in float32, without a "
                "MixedPrecisionPolicy of lower precision."
            )
        return HVPMethod.FINITE_DIFFERENCE
    if method is HVPMethod.AUTO:
        single = wide and all(p.dtype == torch.float32 for p in objective.parameters.values())
        return HVPMethod.FINITE_DIFFERENCE if single else HVPMethod.REVERSE_OVER_REVERSE
    return method


def default_displacement(objective: Objective) -> float:
    """Norm of a finite difference's displacement that suits the weights' norm and dtype."""
    dtypes = {p.dtype for p in objective.parameters.values()}
    relative = max(RELATIVE_DISPLACEMENT[dtype] for dtype in dtypes)
    weights = [local(p).detach() for p in objective.parameters.values()]
    norm = math.sqrt(objective.shards.sum(sum(_mean_square(w) * w.numel() for w in weights)))
    # weights that are all (nearly) zero give no scale: take that of an ordinary initialization
    return relative * max(norm, 0.02 * math.sqrt(objective.num_parameters))


def _mean_square(weights: Tensor) -> float:
    """Of at most about 8,192 elements, evenly spread, which is as much as a scale needs."""
    sample = weights.reshape(-1)[:: max(1, weights.numel() >> 12)] if weights.is_contiguous() else weights
    return torch.linalg.vector_norm(sample).item() ** 2 / max(sample.numel(), 1)


def batch_gradient(objective: Objective, total: Tensor) -> dict[str, Tensor]:
    """Gradient of a scalar by ``.backward()``, by parameter name; parameters it does not reach are absent.

    Those of embeddings are sparse where the loss was taken under ``objective.sparse_embeddings()``.
    """
    if total.requires_grad:
        total.backward()
    return take_gradients(objective)


class HessianProduct:
    """H_b v for the summed loss of a batch b, at the weights or displaced from them.

    A finite difference along a vector that leans on sharp directions (a gradient, a Lanczos vector) needs a
    far shorter step than one along random signs.  Its truncation error shows without further gradients: two
    losses and two slopes along v give L‴, and a step that makes L‴ visible is repeated, shorter.

    Args:
        objective: an inspected objective.
        method: a member of :class:`HVPMethod`; ``auto`` is resolved, see :attr:`method`.
        saved: a copy of the weights, shared by all who displace them.  Needed by finite differences,
            and to take products away from w.
        displacement: norm of the displacement of a finite difference; by default it is chosen, and controlled.
        asymmetry: how much of L‴ a controlled step may show; the relative error is about 1.5 times its square.
        sparse: whether products may be sparse for embeddings of which a batch reads few rows.
    """

    def __init__(
        self,
        objective: Objective,
        method: HVPMethod | str = HVPMethod.AUTO,
        *,
        saved: SavedWeights | None = None,
        displacement: float | None = None,
        asymmetry: float = 0.003,
        sparse: bool = False,
    ) -> None:
        self.objective, self.saved, self.sparse = objective, saved, sparse
        self.method = choose_method(objective, method)
        self.controlled = displacement is None
        self.asymmetry = asymmetry
        self.longest = 0.0
        if self.method is HVPMethod.FINITE_DIFFERENCE:
            self.longest = displacement if displacement is not None else default_displacement(objective)
        if self.method is not HVPMethod.FINITE_DIFFERENCE or not self.controlled:
            # not later: a pass over the data seeds the random numbers, and a random loss would repeat itself
            objective.confirm_deterministic()
        self._current: dict[bool, float] = {}
        checkpointing = objective.checkpointing and (
            self.method is HVPMethod.FINITE_DIFFERENCE
            or (self.method is HVPMethod.REVERSE_OVER_REVERSE and not uses_reentrant_checkpointing(objective.model))
        )
        evaluation_mode(objective.model, checkpointing=checkpointing)

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
    ) -> tuple[dict[str, Tensor], float]:
        """H_b v by parameter name, and the batch's number of loss units.

        Parameters that the loss does not reach are absent: their part is 0.

        Args:
            batch, index: the batch and its number (named in errors).
            direction: v.
            norm: ‖v‖; by default √m, the norm of a vector of signs.
            at: displacement from w, as terms (direction, scale).
        """
        if self.method is HVPMethod.FINITE_DIFFERENCE:
            return self._finite_difference(batch, index, direction, norm, at)
        if self.saved is not None:
            # torch.func reads the weights before the model does
            self.saved.displace(at, whole=self.method is HVPMethod.FORWARD_OVER_REVERSE)
        vector = {
            name: _whole(direction, name, parameter).to(parameter.dtype)
            for name, parameter in self.objective.parameters.items()
        }
        with double_backward_attention(self.objective.model):
            if self.method is HVPMethod.REVERSE_OVER_REVERSE:
                return _reverse_over_reverse(self.objective, batch, index, vector)
            with transformable(self.objective.model):
                return _forward_over_reverse(self.objective, batch, index, vector)

    def _finite_difference(
        self, batch: Any, index: int, direction: Direction, norm: float | None, at: Terms
    ) -> tuple[dict[str, Tensor], float]:
        """(∇L(w + hv) - ∇L(w - hv))/(2h), with ‖hv‖ the displacement."""
        if self.saved is None:
            raise ValueError("Finite differences need a copy of the weights: pass saved=SavedWeights(parameters).")
        norm = math.sqrt(self.objective.num_parameters) if norm is None else norm
        away = bool(at)
        displacement = self._current.get(away, self.longest)
        # signs in all coordinates are never aligned with anything, so the default step suits them
        controlled = self.controlled and not isinstance(direction, RademacherDirection)
        for _ in range(MOST_ATTEMPTS):
            gradients: dict[str, Tensor] = {}  # those of the last attempt, if any, are not kept beside the next
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
            self.saved.restore()
            self.objective.confirm_deterministic()  # a loss that is not looks as if no step were short enough
        return gradients, units

    def _difference(
        self, batch: Any, index: int, direction: Direction, step: float, at: Terms, norm: float | None
    ) -> tuple[dict[str, Tensor], float, float]:
        """The central difference, the batch's units, and |h(s₊ + s₋) - (L₊ - L₋)| / (h ‖g₊ - g₋‖ ‖v‖).

        s are the slopes along v; the numerator is (2/3) h³ |L‴|, 0 where it is below rounding.
        The second gradient accumulates onto the first, which has the opposite sign: one buffer, not two.
        """
        objective, saved = self.objective, self.saved
        losses, slopes, units = [], [], 0.0
        for sign in (1.0, -1.0):
            saved.displace([*at, (direction, sign * step)])  # type: ignore[union-attr]
            with objective.sparse_embeddings():
                result = objective.loss(batch, index)
            units = result.units
            if result.total.requires_grad:
                (result.total * (sign / (2 * step))).backward()
            if norm is not None:
                losses.append(result.total.item())
                slopes.append(_slope(objective, direction, objective.rows(index)))
            del result  # or its graph would be there beside the next
            for parameter in objective.parameters.values():
                if parameter.grad is not None and parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.coalesce()  # a row for every token becomes one for every word
        gradients = take_gradients(objective)
        if not self.sparse:
            gradients = {name: dense(gradient) for name, gradient in gradients.items()}
        if norm is None:
            return gradients, units, 0.0
        # slopes[0] is c s₊ and slopes[1] is c (s₊ - s₋), with c = 1/(2 step)
        gap = step * (2 * slopes[0] - slopes[1]) * 2 * step - (losses[0] - losses[1])
        if abs(gap) <= 16 * torch.finfo(torch.float32).eps * max(map(abs, losses), default=0.0):
            return gradients, units, 0.0  # below rounding
        stored = (g.values() if g.is_sparse else g for g in gradients.values())
        length = math.sqrt(objective.shards.sum(sum(torch.linalg.vector_norm(g).item() ** 2 for g in stored)))
        whole = step * length * 2 * step * norm
        return gradients, units, abs(gap) / whole if whole > 0 else 0.0


def _slope(objective: Objective, direction: Direction, rows: Rows) -> float:
    """Inner product of the accumulated gradients with a direction."""
    total = 0.0
    for name, parameter in objective.parameters.items():
        if parameter.grad is not None and name in rows:
            gradient = pick_rows(parameter.grad, rows[name])
            along = direction.rows(name, rows[name], gradient).to(gradient.dtype)
            total += torch.dot(gradient.view(-1), along.reshape(-1)).item()
        elif parameter.grad is not None:
            gradient = dense(local(parameter.grad))
            for start, (piece,) in chunks(gradient.detach()):
                along = direction.piece(name, start, piece).to(piece.dtype).reshape(-1)
                total += torch.dot(piece.reshape(-1), along).item()
    return objective.shards.sum(total)


def take_gradients(objective: Objective) -> dict[str, Tensor]:
    """Move the gradients out of the parameters, by name; those of sparse layout are coalesced."""
    gradients = {}
    for name, parameter in objective.parameters.items():
        if parameter.grad is not None:
            gradient = local(parameter.grad).detach()
            gradients[name] = gradient.coalesce() if gradient.is_sparse else gradient
            parameter.grad = None
    return gradients


def _reverse_over_reverse(
    objective: Objective, batch: Any, index: int, vector: dict[str, Tensor]
) -> tuple[dict[str, Tensor], float]:
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


def _forward_over_reverse(
    objective: Objective, batch: Any, index: int, vector: dict[str, Tensor]
) -> tuple[dict[str, Tensor], float]:
    # The objective is called through a module that holds the model, so that a user's loss_fn(model, batch)
    # sees the substituted weights too.
    shell = _LossModule(objective)
    weights = {f"model.{name}": p.detach() for name, p in objective.parameters.items()}
    tangents = {f"model.{name}": tangent for name, tangent in vector.items()}

    units: list[float] = []

    def total(parameters: dict[str, Tensor]) -> Tensor:
        result = torch.func.functional_call(shell, parameters, (batch, index))
        units.append(result.units)
        return result.total

    products: Any = torch.func.jvp(torch.func.grad(total), (weights,), (tangents,))[1]
    return {name: products[f"model.{name}"] for name in objective.parameters}, units[-1]


class _LossModule(nn.Module):
    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = objective.model, objective

    def forward(self, batch: Any, index: int) -> BatchLoss:
        return self.objective.loss(batch, index)


def _whole(direction: Direction, name: str, parameter: Tensor) -> Tensor:
    out = torch.empty_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
    for start, pieces in chunks(out, parameter.detach()):
        pieces[0].copy_(direction.piece(name, start, pieces[1]))
    return out
