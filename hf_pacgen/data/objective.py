"""The empirical loss of a model on data: the mean over all loss units, whatever the batching."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_pacgen.data.batches import Batches
from hf_pacgen.data.checks import Checks
from hf_pacgen.data.contents import labels_of
from hf_pacgen.data.inspection import Finding, inspect_loss
from hf_pacgen.data.losses import (
    BatchLoss,
    LossFunction,
    LossKind,
    NotFinite,
    NothingLabeled,
    custom_loss,
    is_causal,
    known_indices,
    no_loss,
)
from hf_pacgen.data.outputs import caught
from hf_pacgen.data.own_loss import ModelLoss, OwnLoss, label_names_of
from hf_pacgen.data.recognition import CrossEntropy, logits_of, tolerance_of
from hf_pacgen.data.units import rules
from hf_pacgen.distributed.processes import send_to_device
from hf_pacgen.model.embeddings import EmbeddingRows
from hf_pacgen.model.parameters import is_finite, trainable_parameters
from hf_pacgen.model.precision import LowPrecisionWatch
from hf_pacgen.model.state import evaluation_mode, forget_caches, uses_checkpointing

__all__ = ["LossChanged", "LossFunction", "Objective"]


class LossChanged(ValueError):
    """A later batch has another loss than the cross-entropy that the first one had."""


class Objective:
    """L̂(w) = Σ_b loss_b / Σ_b units_b over all batches.

    A unit is a labeled token (label ≠ -100; after the shift, for causal language models) where the loss is a
    cross-entropy on per-token logits, its class weight where it is a weighted one, and otherwise what makes the loss of
    a batch the mean of its parts: a label or an example.  The pooled mean is what ``Trainer`` optimizes, and does not
    depend on how the data is cut into batches, unless the loss itself does; then a note says so.

    Args:
        model: any module, without wrappers.
        batches: the data.
        loss_fn: ``loss_fn(model, batch) -> (loss_sum, num_units)``, instead of the model's own loss: a sum over the
            batch's units, not their mean.  Or an :class:`OwnLoss`, such as a Trainer's.
        finite: whether all elements of a weight are finite numbers.

    Attributes:
        parameters: the trainable ones, by name.  rows: which rows of its embeddings the model reads.
        loss_fn: that of the user; None for a loss that comes out of a call, which is ``own``.
        kind, low_precision, checkpointing: what :meth:`inspect` found.
        entropy: the cross-entropy that the loss is; None for any other.  rule: how units are counted then.
        guard: what was checked, for everyone who checks something.
        checks, notes: what it has collected so far, for the result.

    Raises:
        ValueError: no trainable or no floating-point trainable parameters, non-finite weights.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        *,
        loss_fn: LossFunction | OwnLoss | None = None,
        finite: Callable[[Tensor], bool] = is_finite,
    ) -> None:
        self.model, self.batches = model, batches
        self.loss_fn: LossFunction | None = None if isinstance(loss_fn, OwnLoss) else loss_fn
        self.own = loss_fn if isinstance(loss_fn, OwnLoss) else ModelLoss(label_names_of(model))
        self.parameters = trainable_parameters(model, finite)
        self.num_parameters = sum(parameter.numel() for parameter in self.parameters.values())
        self.device = next(iter(self.parameters.values())).device
        self.kind = LossKind.CUSTOM if self.loss_fn is not None else LossKind.OTHER
        self.low_precision = self.checkpointing = False
        self.rows = EmbeddingRows(model, self.parameters)
        self.guard = Checks()
        self.entropy: CrossEntropy | None = None
        self.rule = rules(self.own.label_names, causal=is_causal(model))[0]
        self._twin: OwnLoss | None = None
        self._compared: set[int] = set()
        self._example: tuple[int, Any, float] | None = None
        self.first: tuple[int, Any] | None = None
        """The first batch with labels, and its number."""
        self.loss_dtype = torch.float64
        """Of the loss as it comes out of the call, which may be coarser than the weights."""
        self.reached: tuple[str, ...] = ()
        """Parameters that the loss of the first batch depends on, once that was looked at."""
        self.less: Callable[[Tensor, Any], Tensor] | None = None
        """What is left of a batch's summed loss and its outputs, where a part of the loss alone is wanted."""
        self.kinked = False
        """Whether the gradient may jump, by the operations of the first batch."""

    @property
    def checks(self) -> dict[str, str]:
        """What each check found, by its name."""
        return self.guard.found

    @property
    def notes(self) -> list[str]:
        """Sentences on what limits the numbers."""
        return self.guard.notes

    @property
    def depends_on_batching(self) -> bool:
        """Whether the loss of a batch is not that of its parts."""
        return self.entropy is None and not self.rule.pools

    def inspect(self, *, confirm: bool = True) -> None:
        """Look at a batch with labels: which loss it is, in which precision, and which embeddings are only looked up.

        Without ``confirm``, :meth:`confirm_deterministic` is left to the caller.

        Raises:
            ValueError: empty data, a batch without labels, no labeled unit at all in any batch, or a loss
                that is not finite or differs between two identical passes.
        """
        self.checkpointing = uses_checkpointing(self.model)
        evaluation_mode(self.model, checkpointing=self.checkpointing)
        index, batch = self.first = self._first_with_labels()
        precision = LowPrecisionWatch()
        on_device = send_to_device(batch, self.device)
        with torch.enable_grad(), self.rows.watching(), self.rows.sparse_gradients():
            with precision:
                value, units, outputs = self._looked_at(index, on_device)
            self.low_precision, self.loss_dtype = precision.seen, value.dtype
            if self.loss_fn is None:
                self._require_finite(BatchLoss(value, 1), index)
                self._adopt(inspect_loss(self, value, outputs, on_device, index), index)
                if self._twin is not None:  # its graph is another
                    value, units, _ = self._looked_at(index, on_device)
            self.rows.keep_alone(value)
        self._example = (index, batch, value.item() / units)
        if confirm or self.checkpointing:
            self.confirm_deterministic()

    def confirm_deterministic(self) -> None:
        """Take the first batch's loss, at the weights, a second time; does nothing if that was done.

        Raises:
            ValueError: it is another one.
        """
        if self._example is None:
            return
        index, batch, first = self._example
        self._example = None
        second = self._loss_per_unit(index, batch)
        if self.checkpointing and not self._same(first, second):
            # some layer draws random numbers while its training flag is set: give up checkpointing
            self.checkpointing = False
            evaluation_mode(self.model, checkpointing=False)
            first, second = self._loss_per_unit(index, batch), self._loss_per_unit(index, batch)
        if not self._same(first, second):
            raise ValueError(
                f"The loss of batch {index} differs between two identical passes in evaluation mode: {first:.8g} and "
                f"{second:.8g}. Curvature needs a deterministic loss; turn off what draws random numbers in the "
                "model's forward (dropout applied with training=True, random masking, sampled noise)."
            )
        self.guard.add("the loss twice", f"{first:.8g} and {second:.8g} in two passes over batch {index}")

    def loss(self, batch: Any, index: int) -> BatchLoss:
        """The summed loss of one batch, differentiable.

        Raises:
            ValueError: the model gave no loss, or it is not finite; the message names the batch.
            TypeError: ``loss_fn`` returned something else than a pair of a scalar tensor and a number.
        """
        if self.less is not None:
            return self._part(batch, index, self.less)
        batch = send_to_device(batch, self.device)
        if self.loss_fn is not None:
            forget_caches(self.model)
            with self.rows.reading(index):
                result = custom_loss(self.loss_fn(self.model, batch))
            if not result.units:  # often the mean of nothing times 0, which is NaN
                result = BatchLoss(result.total.nan_to_num(0.0, 0.0, 0.0), result.units)
        else:
            loss, outputs = self._forward(batch, index)
            result = self._summed(loss, outputs, batch, index)
        self.rows.confirm(result.total, index)
        self._require_finite(result, index)
        return result

    def units(self, batch: Any) -> float:
        """Number of loss units of a batch (for a loss that comes out of a call)."""
        labels = self._labels(batch)
        if self.entropy is not None and isinstance(labels, Tensor) and labels.ndim:
            return self.entropy.units(labels)
        return self.rule.count(batch)

    def count_units(self, batch: Any, index: int) -> float:
        """Number of loss units of a batch, for any loss."""
        if self.loss_fn is None:
            return self.units(batch)
        with torch.no_grad():
            return self.loss(batch, index).units

    def has_units(self, batch: Any) -> bool:
        """Whether a batch counts at all; a batch whose labels are all -100 does not."""
        return self.loss_fn is not None or not isinstance(batch, Mapping) or self.units(batch) > 0

    def sampled_loss(self, batch: Mapping[str, Any], index: int, key: int) -> tuple[Tensor, BatchLoss]:
        """The summed loss on labels drawn from the model's own predictions, and (detached) on the true ones.

        Its gradient G has E[G Gᵀ] equal to the Gauss-Newton matrix of the summed loss.

        Raises:
            LossChanged: the loss of this batch is not the cross-entropy on its logits.
        """
        scores, labels = self._scores(send_to_device(batch, self.device), index)
        result = self._true(scores, labels, index)
        self.rows.confirm(scores.sum(), index)
        self._require_finite(result, index)
        generator = torch.Generator(device=scores.device).manual_seed(key)
        with torch.no_grad():
            drawn = torch.multinomial(scores.softmax(-1), 1, generator=generator).squeeze(-1)
        return self._sampled(scores, labels, drawn), result

    # ------------------------------------------------------------------------------------------ internals

    def _part(self, batch: Any, index: int, less: Callable[[Tensor, Any], Tensor]) -> BatchLoss:
        self.less = None
        try:
            with caught(self.model) as found:
                whole = self.loss(batch, index)
            return BatchLoss(less(whole.total, found[-1]), whole.units)
        finally:
            self.less = less

    def _forward(self, batch: Any, index: int) -> tuple[Tensor, Any]:
        """The loss as it comes out of the call, and the outputs."""
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"A batch must be a dict of the model's inputs, with labels; got {type(batch).__name__}. "
                "Pass loss_fn(model, batch) -> (loss_sum, num_units) for other batches."
            )
        forget_caches(self.model)
        with self.rows.reading(index), known_indices(index):
            loss, outputs = self.own(self.model, self.own.prepare(batch))
        if loss is None:
            raise no_loss(batch, index)
        return loss, outputs

    def _summed(self, loss: Tensor, outputs: Any, batch: Any, index: int) -> BatchLoss:
        units = self.units(batch)
        if not units:  # a mean over no units is 0/0: such a batch counts for nothing
            return BatchLoss(loss.detach().new_zeros(()), units)
        self._compare(loss, outputs, batch, index)
        if loss.element_size() < 4:
            # a sum of many units overflows in float16, and is rounded to 8 bits in bfloat16
            exact = self._entropy_total(outputs, batch) if self.entropy is not None else None
            if exact is not None:
                return BatchLoss(*exact)
            loss = loss.float()
        adds = self.entropy.adds if self.entropy is not None else self.rule.adds
        return BatchLoss(loss if adds else loss * units, units)

    def _entropy_total(self, outputs: Any, batch: Any) -> tuple[Tensor, float] | None:
        labels = self._labels(batch)
        logits = logits_of(outputs, labels)
        pair = self.entropy.pairs(logits, labels) if self.entropy is not None and logits is not None else None
        return None if pair is None or self.entropy is None else self.entropy.total(*pair)

    def _compare(self, loss: Tensor, outputs: Any, batch: Any, index: int) -> bool:
        """Whether a batch's loss is the recognized cross-entropy of its logits; looked at once for every batch."""
        if index in self._compared or not self._compares or not bool(loss.detach().isfinite()):
            return True  # what is not finite is refused elsewhere
        self._compared.add(index)
        if self._twin is not None:
            with torch.no_grad():
                other, _ = self._twin(self.model, self._twin.prepare(batch))
            if other is not None and not self._close(other, loss):
                raise ValueError(
                    f"The loss of batch {index} is {other.item():.6g} by {self._twin.name} and {loss.item():.6g} by "
                    f"{self.own.name}, although they agreed on the first batch. Pass loss_fn(model, batch) -> "
                    "(loss_sum, num_units) that is the loss you train with."
                )
        if self.entropy is None:
            return True
        labels = self._labels(batch)
        logits = logits_of(outputs, labels)
        if logits is not None and self.entropy.explains(loss, logits, labels):
            return True
        rebuilt = self._entropy_total(outputs, batch)
        found = "and its logits and labels do not belong together as in the first"
        if rebuilt is not None:
            value = rebuilt[0].item() / (1 if self.entropy.adds else max(rebuilt[1], 1e-30))
            found = f"and the {self.kind.value} on its logits {value:.6g}"
        self.guard.note(
            f"The loss of batch {index} is {loss.item():.6g}, {found}: the loss that comes out of the model was taken."
        )
        return False

    _compares = True
    """Whether every batch's loss is compared with the rebuilt one."""

    def _scores(self, batch: Mapping[str, Any], index: int) -> tuple[Tensor, Tensor]:
        """Logits and labels of a batch's units."""
        if labels_of(batch, self.own.label_names) is None:
            raise no_loss(batch, index)
        if self.entropy is None:
            raise ValueError(f"There are no labels to draw: this is {self.kind.value}. Use estimator='hutchinson'.")
        # with labels, although their loss is not needed: some models make other logits without
        loss, outputs = self._forward(batch, index)
        same = self._compare(loss, outputs, batch, index)
        labels = self._labels(batch)
        logits = logits_of(outputs, labels)
        scored = self.entropy.pairs(logits, labels) if logits is not None else None
        if scored is None or not same:
            raise LossChanged(
                f"The loss of batch {index} is not the {self.kind.value} on the model's logits that the first batch "
                "had, so Gauss-Newton with sampled labels does not fit it. Use estimator='hutchinson', or give every "
                "batch labels of the same form."
            )
        return scored

    def _true(self, scores: Tensor, labels: Tensor, index: int) -> BatchLoss:
        entropy: Any = self.entropy
        with known_indices(index):
            return BatchLoss(*entropy.total(scores.detach(), labels))

    def _sampled(self, scores: Tensor, labels: Tensor, drawn: Tensor) -> Tensor:
        each = self.entropy.unit_weights(labels) if self.entropy is not None else None
        if each is None:
            return functional.cross_entropy(scores, drawn, reduction="sum")
        # E[G Gᵀ] has the squares of what multiplies a label's loss
        return (functional.cross_entropy(scores, drawn, reduction="none") * each.to(scores).sqrt()).sum()

    def _labels(self, batch: Any) -> Any:
        return labels_of(batch, self.own.label_names)

    def _loss_per_unit(self, index: int, batch: Any) -> float:
        with torch.enable_grad():  # as in the first look: without, other kernels may be chosen
            value, units, _ = self._looked_at(index, send_to_device(batch, self.device))
        return value.item() / units

    def _looked_at(self, index: int, batch: Any) -> tuple[Tensor, float, Any]:
        """The loss as the call or the user gives it, what to divide it by, and the model's outputs."""
        if self.loss_fn is not None:
            result = self.loss(batch, index)
            return result.total, max(result.units, 1), None
        loss, outputs = self._forward(batch, index)
        return loss, 1, outputs

    def _first_with_labels(self) -> tuple[int, Any]:
        empty = True
        for index, batch in self.batches.every():
            empty = False
            labels = self._labels(batch)
            if isinstance(labels, Tensor) and not labels.is_floating_point() and self.loss_fn is None:
                scored = labels[..., 1:] if labels.ndim > 1 and is_causal(self.model) else labels
                if not bool((scored != -100).any()):
                    continue
            return index, batch
        if empty:
            raise ValueError("The data is empty: expected at least one batch, got none.")
        raise NothingLabeled(
            "All labels of the data are -100, which means 'ignore': there is no loss unit to average over. "
            "Check how the labels were made."
        )

    def _adopt(self, found: Finding, index: int) -> None:
        """Take over what the inspection found."""
        self.entropy, self.rule = found.entropy, found.rule or self.rule
        self.kind = LossKind.OTHER if found.entropy is None else found.entropy.kind
        if found.twin is not None:
            self._twin, self.own = self.own, found.twin
        for sentence in found.notes:
            self.guard.note(sentence)
        self.guard.add("the loss of a batch", found.sentence)

    def _same(self, first: float, second: float) -> bool:
        dtype = next(iter(self.parameters.values())).dtype
        tolerance = 1e-3 if self.low_precision else (1e-9 if dtype == torch.float64 else 1e-5)
        return math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance)

    def _close(self, one: Tensor, other: Tensor) -> bool:
        tolerance = 1e-2 if self.low_precision else tolerance_of(one, other)
        return math.isclose(one.item(), other.item(), rel_tol=tolerance, abs_tol=tolerance * 1e-2)

    def _require_finite(self, result: BatchLoss, index: int) -> None:
        if result.units and not bool(result.total.detach().isfinite()):
            raise NotFinite(
                f"The loss of batch {index} is {result.total.item()}: expected a finite number. "
                "Look at that batch's inputs and labels, and at the weights."
            )
