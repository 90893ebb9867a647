"""Whether a loss is the negative logarithm of a likelihood of the model's outputs, and targets drawn from that.

It is told by the value of the loss and by its slope with respect to the outputs, on every batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional

from hf_pacgen.data.contents import LABEL_NAMES, labels_of
from hf_pacgen.data.losses import IGNORED, LossKind, scored_units
from hf_pacgen.data.outputs import named_outputs
from hf_pacgen.maths.likelihoods import Likelihood

__all__ = ["Explained", "Reading", "explain", "readings", "rebuilt"]

MOST_IGNORED = 2
"""Labels besides -100 that a loss may ignore."""
SURE = 1e-6
"""Part of the longest slope below which that of a unit does not tell its weight."""


@dataclass(frozen=True)
class Reading:
    """Which outputs meet which targets, and how.

    Attributes:
        likelihood: of which the loss may be the negative logarithm.
        outputs: their names.
        way: where classes and labels lie: aligned, of the next token, or with the classes in dimension 1.
    """

    likelihood: Likelihood
    outputs: tuple[str, ...]
    way: str = "aligned"


@dataclass(frozen=True)
class _Term:
    output: Tensor
    pick: Callable[[Tensor], Tensor]
    """The units among the elements of a tensor like the output."""
    targets: Tensor


@dataclass(frozen=True)
class Explained:
    """A batch's loss, as Σ_i a_i ℓ(z_i, y_i) and a rest that does not depend on z.

    Attributes:
        reading: what it was read as.
        value: Σ a_i ℓ(z_i, y_i), in the graph of the loss.
        rest: the loss less that: 0 to rounding, a constant, or a term besides the outputs.
        scales: a_i, by outputs.
        smoothing: part of a label that is spread over all classes.
        uniform: whether all a_i are equal.
    """

    reading: Reading
    terms: tuple[_Term, ...]
    scales: tuple[Tensor, ...]
    smoothing: float
    uniform: bool
    value: Tensor
    rest: Tensor

    def sampled(self, generator: Generator) -> Tensor:
        """Σ sqrt(a_i) ℓ(z_i, ŷ_i), ŷ drawn: the expected square of its gradient is the Gauss-Newton diagonal."""
        facts, parts = self.reading.likelihood.facts, []
        for term, scale in zip(self.terms, self.scales, strict=True):
            z = term.pick(term.output)
            with torch.no_grad():
                drawn = facts.draw(z, generator)
            parts.append((facts.loss(z, drawn, 0.0) * scale.sqrt()).sum())
        return torch.stack(parts).sum()


def readings(likelihood: Likelihood, outputs: Any, *, causal: bool) -> Iterator[Reading]:
    """The ways in which outputs may be those of a likelihood, the likelier first."""
    facts, named = likelihood.facts, named_outputs(outputs)
    if facts.targets:
        known = all(name in named for name in facts.outputs)
        names = facts.outputs if known else tuple(n for n in named if n.startswith("output "))[: len(facts.outputs)]
        if len(names) == len(facts.outputs):
            yield Reading(likelihood, names)
        return
    ways = ("next", "aligned", "second") if causal else ("aligned", "next", "second")
    for name in sorted(named, key=lambda name: name not in facts.outputs):
        for way in ways if facts.classes else ("aligned",):
            yield Reading(likelihood, (name,), way)


def explain(
    total: Tensor, reading: Reading, outputs: Any, batch: Any, names: Sequence[str], *, tolerance: float
) -> Explained | None:
    """A summed loss by a reading of the outputs that it was made of; None where it is not explained by that.

    Args:
        total: in the graph of ``outputs``.
        names: under which a batch may have its labels.
        tolerance: relative, of values and slopes.
    """
    terms = _terms(reading, named_outputs(outputs), batch, names)
    if not terms:
        return None
    slopes = torch.autograd.grad(total, [t.output for t in terms], retain_graph=True, allow_unused=True)
    facts, picked, forms, spread = reading.likelihood.facts, [], [], []
    for term, slope in zip(terms, slopes, strict=True):
        if slope is None:
            return None
        part, z = term.pick(slope), term.pick(term.output.detach())
        # what targets do not belong to must not count
        if not _near(torch.linalg.vector_norm(part), torch.linalg.vector_norm(slope.to(part)), tolerance):
            return None
        picked.append(part)
        forms.append(facts.slope(z, term.targets))
        even = functional.one_hot(term.targets, z.shape[-1]).to(z) - 1 / z.shape[-1] if facts.classes else None
        spread.append(even)
    fitted = _fitted(picked, forms, spread, tolerance)
    if fitted is None:
        return None
    scales, smoothing, uniform = fitted
    value = _value(reading, terms, scales, smoothing)
    # weights found by the slopes would fit the slopes of other losses too (focal ones): they have to fit the value
    if not uniform and not _near(value.detach(), total.detach(), tolerance):
        return None
    return Explained(reading, terms, scales, smoothing, uniform, value, total - value.to(total.dtype))


def rebuilt(
    reading: Reading, outputs: Any, batch: Any, names: Sequence[str], scales: Sequence[Tensor], smoothing: float
) -> Tensor:
    """Σ a_i ℓ(z_i, y_i) of other outputs for a batch that was explained."""
    terms = _terms(reading, named_outputs(outputs), batch, names)
    if not terms:
        raise ValueError("A batch that was explained has no outputs or targets any more: expected those of before.")
    return _value(reading, terms, scales, smoothing)


def _value(reading: Reading, terms: Sequence[_Term], scales: Sequence[Tensor], smoothing: float) -> Tensor:
    losses = [reading.likelihood.facts.loss(term.pick(term.output), term.targets, smoothing) for term in terms]
    return torch.stack([(each * scale).sum() for each, scale in zip(losses, scales, strict=True)]).sum()


def _terms(reading: Reading, named: Mapping[str, Tensor], batch: Any, names: Sequence[str]) -> tuple[_Term, ...]:
    facts, found = reading.likelihood.facts, []
    for place, name in enumerate(reading.outputs):
        if facts.targets:
            targets = batch.get(facts.targets[place]) if isinstance(batch, Mapping) else None
        else:
            targets = _labels(batch, names)
        output = named.get(name)
        if output is None or not isinstance(targets, Tensor):
            return ()
        term = (_by_class if facts.classes else _by_element)(output, targets.to(output.device), reading)
        if term is None:
            return ()
        found.append(term)
    return tuple(found)


def _labels(batch: Any, names: Sequence[str]) -> Any:
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return batch[-1]  # as in a TensorDataset
    return labels_of(batch, (*names, *LABEL_NAMES))


def _by_class(output: Tensor, targets: Tensor, reading: Reading) -> _Term | None:
    if targets.is_floating_point() or targets.dtype == torch.bool or not targets.ndim or output.ndim < 2:
        return None
    kind = LossKind.CAUSAL if reading.way == "next" else LossKind.ALIGNED
    second = reading.way == "second"
    if second and output.ndim < 3:
        return None

    def laid(tensor: Tensor) -> Tensor:
        return tensor.movedim(1, -1) if second else tensor

    classes = laid(output).shape[-1]
    beyond = targets[(targets >= classes) | ((targets < 0) & (targets != IGNORED))].unique().tolist()
    if len(beyond) > MOST_IGNORED:
        return None

    def pick(tensor: Tensor) -> Tensor:
        pair = scored_units(laid(tensor), targets, kind, beyond)
        if pair is None:
            raise ValueError("A tensor of an output's shape was expected; got one whose units cannot be told.")
        return pair[0]

    pair = scored_units(laid(output.detach()), targets, kind, beyond)
    return None if pair is None or not pair[1].numel() else _Term(output, pick, pair[1])


def _by_element(output: Tensor, targets: Tensor, reading: Reading) -> _Term | None:
    same = output.shape == targets.shape or output.squeeze(-1).shape == targets.squeeze(-1).shape
    if not same or not output.numel():
        return None
    wide = torch.promote_types(output.dtype, torch.float32)
    wanted = targets.reshape(-1).to(wide)
    bounded = bool(((wanted >= 0) & (wanted <= 1)).all())
    if not bool(wanted.isfinite().all()) or (reading.likelihood is Likelihood.BERNOULLI and not bounded):
        return None
    return _Term(output, lambda tensor: tensor.reshape(-1).to(wide), wanted)


def _fitted(
    slopes: list[Tensor], forms: list[Tensor], spread: list[Tensor | None], tolerance: float
) -> tuple[tuple[Tensor, ...], float, bool] | None:
    """a_i of slopes a_i · form, as one number (with a part of the label spread evenly) or one by unit."""
    slope = torch.cat([s.reshape(-1) for s in slopes]).double()
    form = torch.cat([f.reshape(-1) for f in forms]).double()
    length = float(slope.norm())
    if not length or not math.isfinite(length):
        return None
    columns = [form]
    if all(even is not None for even in spread):
        columns.append(torch.cat([even.reshape(-1) for even in spread if even is not None]).double())
    for count in range(1, len(columns) + 1):
        design = torch.stack(columns[:count], 1)
        answer = torch.linalg.lstsq(design, slope.unsqueeze(1)).solution.squeeze(1)
        scale, smoothing = float(answer[0]), float(answer[1] / answer[0]) if count > 1 else 0.0
        if float((design @ answer - slope).norm()) <= tolerance * length and scale > 0 and 0 <= smoothing <= 1:
            each = tuple(
                torch.full_like(s[..., 0] if spread[i] is not None else s, scale) for i, s in enumerate(slopes)
            )
            return each, smoothing, True
    scales = []
    for s, f, even in zip(slopes, forms, spread, strict=True):
        rows, shape = (s, f) if even is not None else (s.unsqueeze(-1), f.unsqueeze(-1))
        squares = shape.double().square().sum(-1)
        known = squares > SURE**2 * squares.max()
        if not bool(known.any()):
            return None
        a = (rows.double() * shape.double()).sum(-1) / squares.clamp_min(1e-300)
        scales.append(torch.where(known, a, a[known].mean()).to(s))
    fits = torch.cat(
        [((f * a.unsqueeze(-1)) if a.ndim < f.ndim else f * a).reshape(-1) for f, a in zip(forms, scales, strict=True)]
    )
    if float((fits.double() - slope).norm()) > tolerance * length or any(bool((a < 0).any()) for a in scales):
        return None
    return tuple(scales), 0.0, False


def _near(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return math.isclose(float(one), float(other), rel_tol=tolerance, abs_tol=1e-30)
