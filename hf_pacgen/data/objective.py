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
from hf_pacgen.data.losses import (
    IGNORED,
    BatchLoss,
    LossFunction,
    LossKind,
    count_units,
    custom_loss,
    get_output,
    is_causal,
    known_indices,
    loss_of,
    needs_labels,
    no_loss,
    one_example,
    scored_units,
)
from hf_pacgen.distributed.processes import send_to_device
from hf_pacgen.model.embeddings import EmbeddingRows
from hf_pacgen.model.parameters import is_finite, trainable_parameters
from hf_pacgen.model.precision import LowPrecisionWatch
from hf_pacgen.model.state import evaluation_mode, uses_checkpointing

__all__ = ["LossFunction", "Objective"]


class Objective:
    """L̂(w) = Σ_b loss_b / Σ_b units_b over all batches.

    A unit is a labeled token (label ≠ -100; after the shift, for causal language models) where the
    loss is a cross-entropy on per-token logits, and an example otherwise.  The pooled mean is what
    ``Trainer`` optimizes, and does not depend on how the data is cut into batches.

    Args:
        model: any module, without wrappers.
        batches: the data.
        loss_fn: ``loss_fn(model, batch) -> (loss_sum, num_units)``, instead of the model's own loss: a sum over the
            batch's units, not their mean.
        finite: whether all elements of a weight are finite numbers.

    Attributes:
        parameters: the trainable ones, by name.  rows: which rows of its embeddings the model reads.
        kind, low_precision, checkpointing: what :meth:`inspect` found.
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
        loss_fn: LossFunction | None = None,
        finite: Callable[[Tensor], bool] = is_finite,
    ) -> None:
        self.model, self.batches, self.loss_fn = model, batches, loss_fn
        self.parameters = trainable_parameters(model, finite)
        self.num_parameters = sum(parameter.numel() for parameter in self.parameters.values())
        self.device = next(iter(self.parameters.values())).device
        self.kind = LossKind.CUSTOM if loss_fn is not None else LossKind.OTHER
        self.low_precision = self.checkpointing = False
        self.rows = EmbeddingRows(model, self.parameters)
        self.guard = Checks()
        self._example: tuple[int, Any, float] | None = None

    @property
    def checks(self) -> dict[str, str]:
        """What each check found, by its name."""
        return self.guard.found

    @property
    def notes(self) -> list[str]:
        """Sentences on what limits the numbers."""
        return self.guard.notes

    def inspect(self, *, confirm: bool = True) -> None:
        """Look at an example: which loss it is, in which precision, and which embeddings are only looked up.

        It is the first one with labels, or the whole batch where it cannot be told apart from the others.
        Without ``confirm``, :meth:`confirm_deterministic` is left to the caller.

        Raises:
            ValueError: empty data, a batch without labels, no labeled unit at all in any batch, or a loss
                that is not finite or differs between two identical passes.
        """
        self.checkpointing = uses_checkpointing(self.model)
        evaluation_mode(self.model, checkpointing=self.checkpointing)
        index, batch = self._first_with_labels()
        precision = LowPrecisionWatch()
        on_device = send_to_device(batch, self.device)
        with torch.enable_grad(), self.rows.watching(), self.rows.sparse_gradients():
            with precision:
                value, units, outputs = self._example_loss(index, on_device)
            if self.loss_fn is None:
                self._require_finite(BatchLoss(value, 1), index)
                with torch.no_grad():
                    self.kind = self._recognize(value, outputs, on_device.get("labels"))
            # the graph does not show what is inside a checkpoint
            self.rows.keep_alone(value, self.parameters, by_gradient=self.checkpointing)
        self.low_precision = precision.seen
        self._example = (index, batch, value.item() / units)
        if confirm or self.checkpointing:
            self.confirm_deterministic()

    def confirm_deterministic(self) -> None:
        """Take the example's loss, at the weights, a second time; does nothing if that was done.

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

    def loss(self, batch: Any, index: int) -> BatchLoss:
        """The summed loss of one batch, differentiable.

        Raises:
            ValueError: the model gave no loss, or it is not finite; the message names the batch.
            TypeError: ``loss_fn`` returned something else than a pair of a scalar tensor and a number.
        """
        batch = send_to_device(batch, self.device)
        if self.loss_fn is not None:
            with self.rows.reading(index):
                result = custom_loss(self.loss_fn(self.model, batch))
            if not result.units:  # often the mean of nothing times 0, which is NaN
                result = BatchLoss(result.total.nan_to_num(0.0, 0.0, 0.0), result.units)
        else:
            loss = loss_of(self._forward(batch, index), batch, index)
            units = self.units(batch)
            # a mean over no units is 0/0: such a batch counts for nothing
            result = BatchLoss(loss * units if units else loss.detach().new_zeros(()), units)
        self._require_finite(result, index)
        return result

    def units(self, batch: Mapping[str, Any]) -> int:
        """Number of loss units of a batch (for the model's own loss)."""
        labels, shift = batch.get("labels"), self.kind.facts
        if shift is not None and isinstance(labels, Tensor) and not labels.is_floating_point() and labels.ndim:
            return int((labels[..., shift - self._prefix :] != IGNORED).sum())
        return count_units(self.model, batch)

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
        """
        scores, labels = self._scores(send_to_device(batch, self.device), index)
        with known_indices(index):
            true = functional.cross_entropy(scores.detach(), labels, reduction="sum")
        result = BatchLoss(true, float(labels.numel()))
        self._require_finite(result, index)
        generator = torch.Generator(device=scores.device).manual_seed(key)
        with torch.no_grad():
            drawn = torch.multinomial(scores.softmax(-1), 1, generator=generator).squeeze(-1)
        return functional.cross_entropy(scores, drawn, reduction="sum"), result

    # ------------------------------------------------------------------------------------------ internals

    _prefix = 0
    """1 where virtual tokens precede the labels, so that even the first label is predicted."""

    def _forward(self, batch: Mapping[str, Any], index: int) -> Any:
        with self.rows.reading(index), known_indices(index):
            return self.model(**batch)

    def _scores(self, batch: Mapping[str, Any], index: int) -> tuple[Tensor, Tensor]:
        """Logits and labels of a batch's units."""
        inputs: Mapping[str, Any] = batch
        if not needs_labels(self.model):  # the model's own loss graph is not needed here
            inputs = {key: value for key, value in batch.items() if key != "labels"}
        if "labels" not in batch:
            raise no_loss(batch, index)
        scored = scored_units(get_output(self._forward(inputs, index), "logits"), batch["labels"], self.kind)
        if scored is None:
            raise ValueError(
                f"Batch {index} has other shapes than the first one: its logits and labels do not belong together. "
                "Give every batch labels of the same form."
            )
        return scored

    def _loss_per_unit(self, index: int, batch: Any) -> float:
        with torch.enable_grad():  # as in the first look: without, other kernels may be chosen
            value, units, _ = self._example_loss(index, send_to_device(batch, self.device))
        return value.item() / units

    def _example_loss(self, index: int, batch: Any) -> tuple[Tensor, float, Any]:
        """The loss as the model or the user gives it, what to divide it by, and the model's outputs."""
        if self.loss_fn is not None:
            result = self.loss(batch, index)
            self.rows.forget()  # an example is not the batch
            return result.total, max(result.units, 1), None
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"A batch must be a dict of the model's inputs, with labels; got {type(batch).__name__}. "
                "Pass loss_fn(model, batch) -> (loss_sum, num_units) for other batches."
            )
        outputs = self._forward(batch, index)
        self.rows.forget()
        return loss_of(outputs, batch, index), 1, outputs

    def _first_with_labels(self) -> tuple[int, Any]:
        empty = True
        for index, batch in self.batches.every():
            empty = False
            labels = batch.get("labels") if isinstance(batch, Mapping) else None
            if isinstance(labels, Tensor) and not labels.is_floating_point() and self.loss_fn is None:
                scored = labels[..., 1:] if labels.ndim > 1 and is_causal(self.model) else labels
                if not bool((scored != IGNORED).any()):
                    continue
                batch = one_example(batch, scored)
            return index, batch
        if empty:
            raise ValueError("The data is empty: expected at least one batch, got none.")
        raise ValueError(
            f"All labels of the data are {IGNORED}, which means 'ignore': there is no loss unit to average over. "
            "Check how the labels were made."
        )

    def _recognize(self, loss: Tensor, outputs: Any, labels: Any) -> LossKind:
        logits = get_output(outputs, "logits")
        if not isinstance(logits, Tensor) or not isinstance(labels, Tensor) or labels.is_floating_point():
            return LossKind.OTHER
        tolerance = 1e-2 if loss.dtype in (torch.bfloat16, torch.float16) or logits.element_size() < 4 else 1e-4
        # a head that predicts uniformly has both losses equal, so the likelier reading comes first
        kinds = (LossKind.CAUSAL, LossKind.ALIGNED)
        for kind in kinds if is_causal(self.model) else reversed(kinds):
            scored = scored_units(logits, labels, kind)
            if scored is None or scored[1].numel() == 0 or int(scored[1].max()) >= scored[0].shape[-1]:
                continue
            entropy = functional.cross_entropy(*scored)
            if math.isclose(entropy.item(), loss.item(), rel_tol=tolerance, abs_tol=tolerance * 1e-2):
                self._prefix = int(kind.facts == 1 and logits.shape[1] > labels.shape[1])
                return kind
        return LossKind.OTHER

    def _same(self, first: float, second: float) -> bool:
        dtype = next(iter(self.parameters.values())).dtype
        tolerance = 1e-3 if self.low_precision else (1e-9 if dtype == torch.float64 else 1e-5)
        return math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance)

    def _require_finite(self, result: BatchLoss, index: int) -> None:
        if result.units and not bool(result.total.detach().isfinite()):
            raise ValueError(
                f"The loss of batch {index} is {result.total.item()}: expected a finite number. "
                "Look at that batch's inputs and labels, and at the weights."
            )
