"""Whether a loss is a cross-entropy on the model's logits: rebuilt from whole batches, with the model's own logits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hf_pacgen.data.losses import IGNORED, LossKind, counted_labels, scored_units

__all__ = ["CrossEntropy", "logits_of", "recognize", "tolerance_of"]

MOST_FORWARDS = 16
"""Forward passes in which the weights of all classes are asked for; more classes than that has no weighted loss."""

MOST_IGNORED = 2
"""Labels besides -100 that a model may ignore."""


@dataclass(frozen=True)
class CrossEntropy:
    """Σ_i a_i CE(z_i, y_i) over the labels y_i that are classes, divided by Σ_i a_i unless it ``adds``.

    Attributes:
        kind: which logits predict which labels.
        prefix: 1 where virtual tokens precede the labels, so that even the first label is predicted.
        weights: a by class; None where all are 1.
        adds: whether it is a sum, which nothing divides.
        ignored: labels besides -100 that do not count.
    """

    kind: LossKind
    prefix: int = 0
    weights: Tensor | None = None
    adds: bool = False
    ignored: tuple[int, ...] = ()

    def pairs(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
        """Logits (units, classes), at least float32, and labels (units,) that count; None if shapes do not fit."""
        pair = scored_units(logits, labels, self.kind, self.ignored)
        if pair is not None and bool((pair[1] >= pair[0].shape[-1]).any() or (pair[1] < 0).any()):
            # torch would stop at an index, or a GPU at an assertion
            odd, classes = pair[1][(pair[1] >= pair[0].shape[-1]) | (pair[1] < 0)][0].item(), pair[0].shape[-1]
            raise ValueError(
                f"A label is {odd}, and the model has {classes} classes. The first batch has no such label, so it is "
                "not known whether the model's loss ignores it. Write -100 for labels that do not count, or let the "
                "first batch have one of them."
            )
        return pair

    def unit_weights(self, labels: Tensor) -> Tensor | None:
        """a_i of labels that count; None where all are 1."""
        return None if self.weights is None else self.weights.to(labels.device)[labels]

    def total(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """Σ a_i CE(z_i, y_i) and Σ a_i of paired logits and labels."""
        each = self.unit_weights(labels)
        if each is None:
            return functional.cross_entropy(logits, labels, reduction="sum"), float(labels.numel())
        losses = functional.cross_entropy(logits, labels, reduction="none")
        return (losses * each.to(losses)).sum(), float(each.sum(dtype=torch.float64))

    def explains(self, loss: Tensor, logits: Tensor, labels: Tensor) -> bool:
        """Whether it is a batch's loss, to rounding: that of its logits' own precision, too, where that is low."""
        if (pair := self.pairs(logits, labels)) is None or not pair[1].numel():
            return False
        close = tolerance_of(loss, logits)
        with torch.no_grad():
            total, units = self.total(*pair)
            values = [total.item() / (1 if self.adds else max(units, 1e-30))]
            if logits.element_size() < 4 and self.weights is None:
                how = "sum" if self.adds else "mean"  # sums in bfloat16 may be off by percents
                values.append(functional.cross_entropy(pair[0].to(logits.dtype), pair[1], reduction=how).item())
        return any(math.isclose(value, loss.item(), rel_tol=close, abs_tol=close * 1e-2) for value in values)

    def units(self, labels: Tensor) -> float:
        """Σ a_i by the labels alone."""
        counted = labels[..., (self.kind.facts or 0) - self.prefix :]
        known = counted[counted_labels(counted, self.ignored)]
        each = self.unit_weights(known)
        return float(known.numel() if each is None else each.sum(dtype=torch.float64))


def logits_of(outputs: Any, labels: Any) -> Tensor | None:
    """The logits among a model's outputs, by name or, in a tuple, after the loss."""
    logits = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    if logits is None and isinstance(outputs, (tuple, list)):
        found = [t for t in outputs if isinstance(t, Tensor) and t.ndim > 1 and t.is_floating_point()]
        logits = found[0] if found else None
    usable = isinstance(logits, Tensor) and isinstance(labels, Tensor) and not labels.is_floating_point()
    return logits if usable and logits.is_floating_point() and labels.ndim else None  # type: ignore[union-attr]


def tolerance_of(*tensors: Tensor) -> float:
    """How far two ways to compute a loss may lie apart, relatively."""
    return 1e-2 if any(t.element_size() < 4 for t in tensors) else 2e-5


def recognize(
    loss: Tensor,
    logits: Tensor,
    labels: Tensor,
    *,
    causal: bool,
    again: Callable[[Tensor], tuple[Tensor, Tensor] | None],
) -> CrossEntropy | None:
    """The cross-entropy that a batch's loss is; None where it is none.

    Args:
        loss: of a whole batch, with its graph.
        logits, labels: the model's own logits, in that graph, and the labels it was given.
        causal: whether the model predicts the next token.
        again: the loss and the logits with other labels, for class weights.
    """
    # a head that predicts uniformly has both losses equal, so the likelier reading comes first
    kinds = (LossKind.CAUSAL, LossKind.ALIGNED) if causal else (LossKind.ALIGNED, LossKind.CAUSAL)
    longer = logits.ndim == 3 and labels.ndim == 2 and logits.shape[1] > labels.shape[1]
    # labels that are no class are ignored, or the model would have refused them: such as 255
    beyond = labels[(labels >= logits.shape[-1]) | ((labels < 0) & (labels != IGNORED))].unique().tolist()
    if len(beyond) > MOST_IGNORED:
        return None
    plain = [CrossEntropy(kind, int(kind.facts == 1 and longer), ignored=tuple(beyond)) for kind in kinds]
    for found in (*plain, *(dataclasses.replace(one, adds=True) for one in plain)):
        if found.explains(loss, logits, labels):
            return found
    if tolerance_of(loss, logits) > 1e-3:
        return None  # weights could not be read from so few digits
    weighted = (_weighted(one, loss, logits, labels, again) for one in plain)
    return next((found for found in weighted if found is not None), None)


def _weighted(
    plain: CrossEntropy,
    loss: Tensor,
    logits: Tensor,
    labels: Tensor,
    again: Callable[[Tensor], tuple[Tensor, Tensor] | None],
) -> CrossEntropy | None:
    """A cross-entropy with a weight for every class; its gradient with respect to z_i is a_i/Σa (softmax z_i - e_y)."""
    if (found := _shares(plain, loss, logits, labels)) is None:
        return None
    classes, counted = logits.shape[-1], found[1]
    if len(counted) < 2 or classes - 1 > MOST_FORWARDS * (len(counted) - 1):
        return None
    weights = torch.full((classes,), torch.nan, dtype=torch.float64)
    reference = int(counted[int(found[0].argmax())])
    weights[reference] = 1.0
    places = _places(plain, labels)
    others = [c for c in range(classes) if c != reference]
    for start in range(0, len(others), len(places) - 1):
        few = others[start : start + len(places) - 1]
        relabeled = labels.clone().reshape(-1)
        relabeled[places] = reference
        relabeled[places[1 : 1 + len(few)]] = torch.tensor(few, device=labels.device)
        made = again(relabeled.view_as(labels))
        if made is None or (asked := _shares(plain, *made, relabeled.view_as(labels))) is None:
            return None
        shares, drawn = asked
        if float(shares[0]) <= 0:
            return None
        weights[drawn] = shares / shares[0]
    if not bool(weights.isfinite().all()) or bool((weights < 0).any()):
        return None
    # by the mean weight 1, so that the number of units is near that of labels
    weights = weights / weights.mean()
    rebuilt = dataclasses.replace(plain, weights=weights.float())
    both = (rebuilt, dataclasses.replace(rebuilt, adds=True))
    return next((one for one in both if one.explains(loss, logits, labels)), None)


def _shares(plain: CrossEntropy, loss: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
    """a_i/Σa of every label that counts, by the gradient with respect to the logits; None if it has another form."""
    if not (loss.requires_grad and logits.requires_grad):
        return None
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True, allow_unused=True)
    if gradient is None or (pair := plain.pairs(logits.detach(), labels)) is None:
        return None
    slopes = plain.pairs(gradient, labels)
    if slopes is None or not pair[1].numel():
        return None
    form = pair[0].softmax(-1) - functional.one_hot(pair[1], pair[0].shape[-1])
    shares = (slopes[0] * form).sum(-1) / form.square().sum(-1).clamp_min(1e-30)
    left = (slopes[0] - shares.unsqueeze(-1) * form).norm()
    if not bool(left <= 1e-3 * slopes[0].norm()) or not bool(slopes[0].norm() > 0):
        return None
    return shares.double().cpu(), pair[1].cpu()


def _places(plain: CrossEntropy, labels: Tensor) -> Tensor:
    """Where the labels are that count, in the flat tensor of all labels."""
    valid = counted_labels(labels, plain.ignored)
    skipped = (plain.kind.facts or 0) - plain.prefix
    if skipped > 0:
        valid = valid.clone()
        valid[..., :skipped] = False
    return valid.reshape(-1).nonzero().flatten()
