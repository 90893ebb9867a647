"""What is asked on the first batch of every run: whether derivatives are what they say.

The loss, its gradient and the products are compared with differences of each other along one direction of signs.  With
what is asked before, it is 10 forward and 4 backward passes over a batch (two more of them where gradients may jump),
where a default score of n batches is about 50 + 3n and 44 + 3n.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_pacgen.config import Estimator, HVPMethod, ScoreConfig
from hf_pacgen.curvature.checks import named
from hf_pacgen.curvature.hvp import RELATIVE_DISPLACEMENT, HessianProduct, choose_method, default_displacement
from hf_pacgen.curvature.weight_space import Vector, WeightSpace
from hf_pacgen.model.embeddings import dense
from hf_pacgen.model.precision import full_precision

__all__ = ["examine", "examine_for"]

APART = 0.1
"""Relative difference beyond which two ways to the same product disagree, beside what either is known to err."""
KINKED = 0.25
"""Relative difference of one-sided differences beyond which the gradient may jump."""
KINKS = "ReLU, max pooling, a choice of experts"
"""Where gradients jump, in the sentences."""
LONGER = 60.0
"""How much longer the second displacement is, where gradients may jump: the longer, the surer it meets a jump."""
FARTHEST = 0.03
"""Displacement of the loss's second difference, at most, as a fraction of ‖w‖."""
REFUSALS = (RuntimeError, NotImplementedError)
"""What torch raises where a backward pass cannot be differentiated."""


@dataclass
class _Around:
    """The first batch at w and at w ± h z: losses, gradients, slopes along z and the difference of gradients."""

    step: float
    losses: tuple[float, float, float]
    slopes: tuple[float, float, float]
    gradient: Vector
    product: Vector
    asymmetry: float
    epsilon: float

    @property
    def curvature(self) -> float:
        """zᵀ H z by slopes."""
        return (self.slopes[1] - self.slopes[2]) / (2 * self.step)


def examine(space: WeightSpace, method: HVPMethod | str, *, called: str | None = None) -> None:
    """Look at gradients and products on the first batch; resolve ``method`` in the space to what can be trusted.

    ``auto`` changes over where its products are wrong, and a note says so.

    Args:
        space: entered; its weights are left as found.
        method: of the products of this run.
        called: how the user asked for it; by default ``hvp=...``.

    Raises:
        ValueError: a method asked for by name whose products are not the derivative of the gradient.
    """
    asked = HVPMethod(method)
    space.resolved.pop(asked, None)
    processes = space.objective.batches.processes
    with processes.together():
        used = _Examination(space, asked, called or f"hvp={asked.value!r}").run()
    # all processes look at the same batch; should their devices round differently, the first one decides
    space.resolved[asked] = HVPMethod(processes.gather(used.value)[0])


def examine_for(space: WeightSpace, config: ScoreConfig, *, smoothness: bool = True) -> None:
    """Look at the products that a score needs, or the diagonal alone; see :func:`examine`."""
    facts = Estimator(config.estimator).facts
    if facts.needs_products or (smoothness and config.lipschitz_directions):
        examine(space, config.hvp)
    few = facts.most_parameters is not None and space.num_parameters <= facts.most_parameters
    if few and space.has_second_derivatives:  # by derivatives of the gradient's entries
        examine(space, HVPMethod.REVERSE_OVER_REVERSE, called=f"estimator={Estimator(config.estimator).value!r}")


class _Examination:
    def __init__(self, space: WeightSpace, asked: HVPMethod, called: str) -> None:
        self.space, self.objective, self.asked, self.called = space, space.objective, asked, called
        if self.objective.first is None:
            raise ValueError("The objective was not inspected: call inspect() before it is measured.")
        self.index, self.batch = self.objective.first
        self.z = space.trained(space.signs(0, "guard"))
        self.guard = self.objective.guard

    def run(self) -> HVPMethod:
        method = choose_method(self.space, self.asked)
        self.objective.confirm_deterministic()  # before weights are displaced
        dtypes = {p.dtype for p in self.objective.parameters.values()}
        if self.objective.low_precision or not dtypes <= RELATIVE_DISPLACEMENT.keys():
            return self._in_low_precision(method)
        with full_precision():
            around = self._around()
        length = self.space.norm(around.product)
        kinked = around.asymmetry > KINKED
        if not kinked and self.objective.kinked and length:
            # jumps are rare within a short step, and as large: over the batches of a run they add up
            with full_precision():
                far = self._difference(LONGER * around.step)
            if self.space.norm(_minus(far, around.product)) > KINKED * length:
                kinked, around.product, length = True, far, self.space.norm(far)
        used = self._compared(method, around, length, kinked)
        self._against_the_loss(around, kinked)
        self._say_flat(around)
        self.space.restore()
        return used

    def _around(self) -> _Around:
        space = self.space
        step = default_displacement(space) / math.sqrt(space.num_parameters)
        losses, slopes, gradients = [], [], []
        epsilon = 0.0
        for sign in (0.0, 1.0, -1.0):
            space.displace([(self.z, sign * step)] if sign else [])
            result = space.add_gradient(self.batch, self.index, sparse=False)
            losses.append(float(result.total))
            slopes.append(space.slope(self.z, self.index))
            found = space.take_gradient()
            gradients.append({name: dense(g).to(space.zeros_type(name)) for name, g in found.items()})
            epsilon = torch.finfo(result.total.dtype).eps
        here, above, below = gradients
        names = above.keys() & below.keys()
        product = {n: above[n].sub(below[n]).div_(2 * step) for n in names}
        bend = {n: above[n].add_(below[n]).sub_(here[n], alpha=2).div_(2 * step) for n in names & here.keys()}
        length = space.norm(product)
        asymmetry = space.norm(bend) / length if length else 0.0
        three = (losses[0], losses[1], losses[2]), (slopes[0], slopes[1], slopes[2])
        return _Around(step, *three, here, product, asymmetry, epsilon)

    def _difference(self, step: float) -> Vector:
        """The product along z by gradients at w ± step z."""
        for sign in (1.0, -1.0):
            self.space.displace([(self.z, sign * step)])
            self.space.add_gradient(self.batch, self.index, sign / (2 * step), sparse=False)
        found = self.space.take_gradient()
        return {name: dense(g).to(self.space.zeros_type(name)) for name, g in found.items()}

    # ------------------------------------------------------------------------------------------ products

    def _compared(self, method: HVPMethod, around: _Around, length: float, kinked: bool) -> HVPMethod:
        """The method to take: products by autograd against the difference of gradients."""
        if method.facts.differences:
            if kinked and self.space.has_second_derivatives:
                return self._over_kinks(method, around)
            self.guard.add("a product against a difference", "products are differences of gradients")
            return method
        product = self._product(method)
        if isinstance(product, str):
            return self._changed(method, f"cannot be had ({product})")
        gap = self.space.norm(_minus(product, around.product)) if length else 0.0
        share = gap / length if length else 0.0
        self.guard.add("a product against a difference", f"{method.value} differs by {share:.1g} of its length")
        # one-sided differences bound what the central one errs by
        if share <= APART + around.asymmetry or (kinked and _leans(product, around.product)):
            if share > APART:
                self.guard.note(
                    f"Products of {method.value} are the curvature at the weights themselves. Over a short step the "
                    f"gradient changes by another amount ({share:.0%} off): it jumps at kinks ({KINKS}), which no "
                    "second derivative sees, or bends strongly."
                )
            return method
        return self._changed(
            method, f"differ from a difference of gradients along the same direction by {share:.0%} of its length"
        )

    def _product(self, method: HVPMethod) -> Vector | str:
        """A product along z, or why there is none."""
        space = self.space
        space.restore()
        before = {m: m.training for m in self.objective.model.modules()}
        try:
            values, _ = HessianProduct(space, method)(self.batch, self.index, self.z)
        except REFUSALS as error:
            return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        finally:
            space.restore()
            for parameter in self.objective.parameters.values():
                parameter.grad = None
            for module, mode in before.items():
                module.training = mode
        return {name: dense(v).detach().to(space.zeros_type(name)) for name, v in values.items()}

    def _changed(self, method: HVPMethod, why: str) -> HVPMethod:
        if not self.asked.facts.chooses:
            raise ValueError(
                f"The second derivatives of {self.called} {why}: an operation of the model has a backward pass that "
                "autograd cannot differentiate, or differentiates wrongly (a quantized layer, a fused kernel, a custom "
                "Function, a reentrant checkpoint, a detached tensor). Use hvp='auto' or 'finite_difference' with "
                "estimator='blend' or 'hutchinson'."
            )
        self.guard.note(
            f"The products are differences of gradients instead of {method.value}, whose products {why}: an operation "
            "of the model has a backward pass that autograd cannot differentiate."
        )
        return HVPMethod.FINITE_DIFFERENCE

    def _over_kinks(self, method: HVPMethod, around: _Around) -> HVPMethod:
        """Where one-sided differences of the gradient disagree: kinks, such as those of ReLU, or a long step."""
        other = HVPMethod.REVERSE_OVER_REVERSE
        product, length = self._product(other), self.space.norm(around.product)
        if isinstance(product, str):
            self.guard.note(
                f"Differences of gradients depend on the displacement here, as the gradient jumps at kinks ({KINKS}), "
                f"and {other.value} cannot be had ({product}). The curvature is that of a smoothed loss. Try another "
                "displacement to see how much."
            )
            return method
        share = self.space.norm(_minus(product, around.product)) / length
        self.guard.add("a product against a difference", f"{other.value} differs by {share:.1g} of its length")
        if share <= APART:
            return method
        if not _leans(product, around.product):
            self.guard.note(
                f"Differences of gradients depend on the displacement, and differ from {other.value} by {share:.0%}: "
                "the backward pass of the model cannot be differentiated, or its gradient jumps. Try another "
                "displacement to see how much the numbers depend on it."
            )
            return method
        if not self.asked.facts.chooses:
            self.guard.note(
                f"Differences of gradients depend on the displacement here, as the gradient jumps at kinks ({KINKS}): "
                f"they differ by {share:.0%} from {other.value}. Use hvp='auto' for the curvature between kinks."
            )
            return method
        self.guard.note(
            f"The products are {other.value} instead of differences of gradients, which depend on the displacement "
            f"here ({share:.0%} off): the gradient jumps at kinks ({KINKS}), and the curvature is that between kinks."
        )
        return other

    def _in_low_precision(self, method: HVPMethod) -> HVPMethod:
        """Where differences are noise: they are compared in float32 for once, where the model computes in it."""
        apart = self._apart_in_float32(method)
        product = self._product(method)
        whole = not isinstance(product, str) and (self.space.norm(product) > 0 or not self._differs())
        if whole and (apart is None or apart <= APART):
            said = "not compared: differences are noise in low precision"
            if apart is not None:
                said = f"{method.value} differs by {apart:.1g} of its length, with weights and compute in float32"
            self.guard.add("a product against a difference", said)
            return method
        what = "are wrong, also in float32" if not isinstance(product, str) else f"cannot be had ({product})"
        raise ValueError(
            f"The products of {method.value} {what}: an operation of the model has a backward pass that autograd "
            "cannot differentiate, and differences of gradients are noise where it computes in low precision. Load it "
            "with a float32 compute dtype (bnb_4bit_compute_dtype=torch.float32), leave the autocast context, or cast "
            "the model to float32."
        )

    def _apart_in_float32(self, method: HVPMethod) -> float | None:
        """How far a product is from a difference beyond what that errs by; None where float32 is not to be had."""
        if not self.space.is_whole:
            return None
        objective, on_read = self.objective, self.objective.rows.on_read
        tensors = [t for t in (*objective.model.parameters(), *objective.model.buffers()) if t.is_floating_point()]
        before = [(t, t.data) for t in tensors if t.element_size() < 4]
        low, objective.low_precision = objective.low_precision, False
        try:
            for tensor, values in before:
                tensor.data = values.float()
            torch.clear_autocast_cache()
            with (
                torch.autocast(objective.device.type, enabled=False),
                full_precision(),
                WeightSpace(objective) as space,
            ):
                inner = _Examination(space, method, self.called)
                around, product = inner._around(), inner._product(method)
                length = space.norm(around.product)
                if isinstance(product, str) or not length:
                    return None
                return space.norm(_minus(product, around.product)) / length - around.asymmetry
        except REFUSALS:  # inputs of lower precision meet weights of float32
            return None
        finally:
            objective.low_precision, objective.rows.on_read = low, on_read
            for tensor, values in before:
                tensor.data = values
            for parameter in objective.parameters.values():
                parameter.grad = None
            torch.clear_autocast_cache()

    def _differs(self) -> bool:
        """Whether the gradient changes along z at all, by a displacement that low precision shows."""
        space, found = self.space, []
        for sign in (1.0, -1.0):
            space.displace([(self.z, sign * 0.05 * space.scale / math.sqrt(space.num_parameters))])
            space.add_gradient(self.batch, self.index, sparse=False)
            found.append(space.take_gradient())
        space.restore()
        return space.norm(_minus(found[0], found[1])) > 0.02 * space.norm(found[0])

    # ------------------------------------------------------------------------------------------ the loss itself

    def _against_the_loss(self, around: _Around, kinked: bool) -> None:
        """The slope against the gradient, and the quadratic form against the loss's second difference."""
        loss, curvature = around.losses[0], around.curvature
        noise = 8 * around.epsilon * abs(loss)
        most = FARTHEST * self.space.scale / math.sqrt(self.space.num_parameters)
        wanted = math.sqrt(noise / (0.02 * abs(curvature))) if curvature else most
        far = min(max(wanted, around.step), most)
        with torch.no_grad(), full_precision():
            near, twice = self._losses(far / 2), self._losses(far)
        bends = [(up - 2 * loss + down) / (s * s) for s, (up, down) in ((far / 2, near), (far, twice))]
        slopes = [(up - down) / (2 * s) for s, (up, down) in ((far / 2, near), (far, twice))]
        if not all(map(math.isfinite, (*bends, *slopes))):
            return
        unsure = 2 * abs(slopes[1] - slopes[0]) + noise / far
        slope = around.slopes[0]
        wrong = abs(slopes[0] - slope) > 0.05 * max(abs(slopes[0]), abs(slope)) + unsure
        self.guard.add("the loss's slope against the gradient", f"{slopes[0]:.4g} and {slope:.4g}")
        doubt = 2 * abs(bends[1] - bends[0]) + 4 * noise / (far * far)
        told = doubt <= 0.5 * max(abs(curvature), abs(bends[0]))
        bent = told and abs(bends[0] - curvature) > 0.1 * max(abs(bends[0]), abs(curvature)) + doubt
        said = f"{bends[0]:.4g} and {curvature:.4g}" if told else "too small beside rounding to be told"
        self.guard.add("the loss's second difference against the product", said)
        if wrong or (bent and not kinked):
            self.guard.note(
                "The gradient that trains the model is not the derivative of its loss along a random direction: the "
                f"loss's slope is {slopes[0]:.4g} and the gradient's {slope:.4g}, its second difference {bends[0]:.4g} "
                f"and the gradient's {curvature:.4g} (a detached norm as in DoRA, a reversed or masked gradient "
                "such as that of padding in an embedding, a straight-through estimate). What is measured is the "
                "derivative of that gradient, not the Hessian of the loss."
            )

    def _losses(self, step: float) -> tuple[float, float]:
        found = []
        for sign in (1.0, -1.0):
            self.space.displace([(self.z, sign * step)])
            try:
                found.append(float(self.objective.loss(self.batch, self.index).total))
            except ValueError:  # not finite there
                found.append(math.nan)
        self.space.restore()
        return found[0], found[1]

    def _say_flat(self, around: _Around) -> None:
        flat = [n for n, d in around.product.items() if not bool(d.any()) and bool(around.gradient[n].any())]
        if flat and self.space.is_whole:
            self.guard.note(
                f"The curvature of {named(flat)} is exactly 0 although gradients reach it: the loss is linear in it, "
                "or its gradient does not depend on the weights."
            )


def _minus(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Vector:
    out = {}
    for name in {**one, **other}:
        if name in one and name in other:
            out[name] = dense(one[name]) - dense(other[name])
        else:
            out[name] = dense(one[name] if name in one else other[name])
    return out


def _leans(product: Mapping[str, Tensor], difference: Mapping[str, Tensor]) -> bool:
    """Whether a product is the part of a difference that does not come from kinks, by its share along itself."""
    square = sum(v.double().square().sum().item() for v in product.values())
    inner = sum((v.double() * difference[n].double()).sum().item() for n, v in product.items() if n in difference)
    return square > 0 and 0.5 <= inner / square <= 2
