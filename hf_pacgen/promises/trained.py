"""The models that were trained for a promise: their weights, their vote, and how often two of them disagree."""

from __future__ import annotations

import numbers
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_pacgen.config.settings import seed as seed_rule
from hf_pacgen.data.contents import LABEL_NAMES
from hf_pacgen.distributed.processes import send_to_device
from hf_pacgen.measures.session import DataOptions
from hf_pacgen.model.state import preserved
from hf_pacgen.promises.overlap import check_overlap, input_fingerprints
from hf_pacgen.promises.visit import visiting
from hf_pacgen.results.promise import Promise

__all__ = ["TrainedPromise", "changed", "completed", "disagreements"]

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedPromise:
    """A promise, and the models that it is about.

    Attributes:
        promise: what is promised.
        how: ``"split"``, ``"progressive"`` or ``"all"``.
        model: holds the weights of the last of the models; :meth:`load` puts in those of another.
        weights: of every model, the tensors in which any of them differs from the model before the training.
        probabilities: with which the promised model is drawn from them; one model has the probability 1.
        tested_on: the part of the data on which each model was tested.
        trained_examples: how many examples each training went through, in one epoch.
        num_examples: of the data, n.
    """

    promise: Promise
    how: str
    model: nn.Module
    weights: tuple[Weights, ...]
    probabilities: tuple[float, ...]
    tested_on: tuple[Any, ...]
    trained_examples: tuple[int, ...]
    num_examples: int

    @property
    def cost(self) -> float:
        """Examples that all trainings went through, in trainings on all of the data with as many epochs."""
        return sum(self.trained_examples) / self.num_examples

    def load(self, number: int) -> nn.Module:
        """Put the weights of one of the models into ``model``, and return it."""
        if isinstance(number, bool) or not isinstance(number, numbers.Integral) or not 0 <= number < len(self.weights):
            raise ValueError(f"number must be in [0, {len(self.weights) - 1}], that of a model; got {number!r}.")
        _put(self.model, self.weights[int(number)])
        return self.model

    def draw(self, seed: int) -> int:
        """The number of the model that the promise is about, drawn with the probabilities.

        A promise is about a draw: do not look at the models' errors and take the best.
        """
        generator = torch.Generator().manual_seed(seed_rule(seed, "seed"))
        return int(torch.multinomial(torch.tensor(self.probabilities), 1, generator=generator))

    @torch.no_grad()
    def vote(self, batch: Mapping[str, Any]) -> Tensor:
        """The class with the largest mean probability over the models, for every example.

        It errs less than the drawn model as a rule, but no promise is about it.
        """
        total: Tensor | float = 0.0
        with preserved(self.model), _kept(self.model):
            self.model.eval()
            for chance, weights in zip(self.probabilities, self.weights, strict=True):
                _put(self.model, weights)
                total = total + chance * _logits(self.model(**_without_labels(batch))).double().softmax(-1)
        return torch.as_tensor(total).argmax(-1)


def changed(before: nn.Module, after: nn.Module) -> Weights:
    """The tensors in which two models differ: of an adapted model its adapter, not its base."""
    old = before.state_dict()
    return {
        name: value.detach().clone()
        for name, value in after.state_dict().items()
        if name not in old or old[name].shape != value.shape or not torch.equal(old[name].to(value.device), value)
    }


@torch.no_grad()
def _put(model: nn.Module, weights: Weights) -> None:
    own = model.state_dict()
    for name, value in weights.items():
        own[name].copy_(value)


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    saved = {name: value.detach().clone() for name, value in model.state_dict().items()}
    try:
        yield
    finally:
        _put(model, saved)


def _without_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in LABEL_NAMES}


def _logits(outputs: Any) -> Tensor:
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"Models are compared and counted by their classes: expected logits (examples, classes); got {shape}. "
            "Take how='split', which works with every loss."
        )
    return logits


def completed(weights: Sequence[Weights], before: nn.Module) -> tuple[Weights, ...]:
    """Weights of models by which each replaces any other: what only another one has changed is as it was before."""
    old = before.state_dict()
    names = {name for one in weights for name in one}
    return tuple({name: one[name] if name in one else old[name].detach().clone() for name in names} for one in weights)


def disagreements(
    first: nn.Module,
    second: nn.Module,
    data: Any,
    options: DataOptions,
    *,
    known: Collection[bytes] = (),
    assume_independent: bool = False,
) -> tuple[int, int, str | None]:
    """On how many of some inputs two models predict different classes, of how many, and what was vouched for.

    Raises:
        ValueError: no inputs, or some that are among ``known``, on which the models were trained to agree; outputs
            without logits (examples, classes).
    """
    if options.get("collate_fn") is None and hasattr(data, "column_names"):
        # labels may be missing in part, or say "unknown"; a collator of one's own may want the column
        data = data.remove_columns([name for name in LABEL_NAMES if name in (data.column_names or ())])

    def differ(index: int, batch: Any) -> tuple[int, list[bytes]]:
        if not isinstance(batch, Mapping):
            raise ValueError(f"unlabeled must have inputs by their names; a batch of it is a {type(batch).__name__}.")
        inputs = send_to_device(_without_labels(batch), visit.device)
        one, other = _logits(first(**inputs)), _logits(second(**inputs))
        # what is not finite has no class, and counts as a disagreement
        finite = one.isfinite().all(-1) & other.isfinite().all(-1)
        found = int(((one.argmax(-1) != other.argmax(-1)) | ~finite).sum())
        return found, input_fingerprints(first, batch)

    with visiting(first, data, stage="unlabeled inputs", **options) as visit, preserved(second):  # type: ignore[misc]
        second.eval()
        parts = visit.each(differ)
    prints = [key for _, keys in parts for key in keys]
    vouched = check_overlap(prints, known, assume_independent=assume_independent, what="unlabeled inputs")
    return sum(count for count, _ in parts), len(prints), vouched
