"""The running mean of probabilities over draws of the noise, without keeping any draw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.predictions.reading import Places

__all__ = ["MOST_CLASSES", "TOP", "Batch", "Tally", "cross_entropy", "entropy", "joined"]

MOST_CLASSES, TOP = 256, 32
"""Up to how many classes all are kept, and how many of more: a language model's vocabulary would fill the memory."""
BLOCK = 1 << 22
"""Numbers that are computed in float64 at a time."""


def entropy(chances: Tensor) -> Tensor:
    """-Σ p log p over the last axis, in nats, with 0 log 0 = 0."""
    return -torch.special.xlogy(chances, chances).sum(-1)


@dataclass(eq=False)
class Batch:
    """What is kept of one batch, places as rows.  Columns are the classes, or those that are kept and one for the rest.

    Attributes:
        plain: the probabilities without noise, (places, columns), float64.
        mean, squares: over the draws so far, the mean of the probabilities, and the sum of squared distances to it.
        entropies: the mean over the draws of each draw's entropy, (places,), in nats.
        classes: (places, columns - 1) which classes the columns are; None where they are all classes in order.
        label_at: the column of the label, (places,); None without labels.
        labels, rows, num_rows, unit: as in :class:`Places`.
    """

    plain: Tensor
    mean: Tensor
    squares: Tensor
    entropies: Tensor
    classes: Tensor | None
    label_at: Tensor | None
    labels: Tensor | None
    rows: Tensor
    num_rows: int
    unit: str
    draws: int = 0

    @classmethod
    def of(cls, places: Places, top: int | None) -> Batch:
        """Begin with the probabilities of the model without noise."""
        logits, labels = places.logits, places.labels
        count = logits.shape[1]
        keep = (count if count <= MOST_CLASSES else TOP) if top is None else min(top, count)
        classes = label_at = None
        if keep < count:
            classes = logits.topk(keep, dim=1).indices
            if labels is not None:
                # the label always has a column, or its probability would be lost
                lacking = ~(classes == labels[:, None]).any(1)
                classes[lacking, -1] = labels[lacking]
                label_at = (classes == labels[:, None]).long().argmax(1)
        elif labels is not None:
            label_at = labels
        chances = _columns(logits, classes)
        zeros = torch.zeros_like(chances)
        return cls(
            plain=chances.cpu(),
            mean=zeros.cpu(),
            squares=zeros.cpu().clone(),
            entropies=torch.zeros(len(chances), dtype=torch.float64),
            classes=None if classes is None else classes.cpu(),
            label_at=None if label_at is None else label_at.cpu().long(),
            labels=None if labels is None else labels.cpu().long(),
            rows=places.rows,
            num_rows=places.num_rows,
            unit=places.unit,
        )

    def add(self, places: Places) -> None:
        """One more draw."""
        classes = None if self.classes is None else self.classes.to(places.logits.device)
        chances = _columns(places.logits, classes).cpu()
        self.draws += 1
        before = chances - self.mean
        # so that equal draws leave their common value bit for bit, which a sum divided by their number may not
        self.mean += before / self.draws
        self.squares += before * (chances - self.mean)
        self.entropies += (entropy(chances) - self.entropies) / self.draws


def _columns(logits: Tensor, classes: Tensor | None) -> Tensor:
    """Probabilities, float64: of all classes, or of some and of the rest as one more."""
    parts = []
    for rows in row_blocks(logits):
        chances = logits[rows].double().softmax(-1)
        if classes is not None:
            kept = chances.gather(1, classes[rows])
            chances = torch.cat([kept, (1 - kept.sum(1, keepdim=True)).clamp_min(0)], dim=1)
        parts.append(chances)
    return torch.cat(parts) if parts else logits.double()


def row_blocks(logits: Tensor) -> Iterator[slice]:
    """Rows in blocks: those of a vocabulary in float64, all at once, would be many times the model's own outputs."""
    size = max(1, BLOCK // max(1, logits.shape[1]))
    for start in range(0, len(logits), size):
        yield slice(start, start + size)


def cross_entropy(places: Places) -> float:
    """-Σ log p of the labels, in nats."""
    labels, total = places.labels, 0.0
    if labels is None:
        return total
    for rows in row_blocks(places.logits):
        log = places.logits[rows].double().log_softmax(-1)
        total -= log.gather(1, labels[rows].long()[:, None]).sum().item()
    return total


@dataclass(eq=False)
class Tally:
    """All batches of this process, by their number."""

    top: int | None = None
    batches: dict[int, Batch] = field(default_factory=dict)

    def start(self, index: int, places: Places) -> None:
        """A batch without noise."""
        self.batches[index] = Batch.of(places, self.top)

    def add(self, index: int, places: Places) -> None:
        """A batch under a draw."""
        self.batches[index].add(places)


def joined(batches: list[Batch]) -> dict[str, Any]:
    """All batches, in their order, as columns by name.

    Raises:
        ValueError: no place in any batch; batches with different numbers of classes, or some without labels.
    """
    if not any(len(batch.mean) for batch in batches):
        raise ValueError(
            "The data has nothing to predict: expected at least one example, or one token whose label is not -100; got "
            "none. Check the data and its labels."
        )
    widths = {batch.mean.shape[1] for batch in batches}
    if len(widths) > 1:
        raise ValueError(
            f"Batches have different numbers of classes ({sorted(widths)}), which have no common table. Pad the "
            "choices of all examples to one number."
        )
    labeled = {batch.labels is not None for batch in batches}
    if len(labeled) > 1 or len({batch.unit for batch in batches}) > 1:
        raise ValueError(
            "Some batches have labels of another form than others, or none. Give every batch labels of one form, or "
            "none to any."
        )
    starts = [0]
    for batch in batches:
        starts.append(starts[-1] + batch.num_rows)
    names = ["plain", "mean", "squares", "entropies"] + ["classes"] * (batches[0].classes is not None)
    names += ["label_at", "labels"] * labeled.pop()
    found: dict[str, Any] = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}
    rows: Iterator[Tensor] = (b.rows + start for b, start in zip(batches, starts, strict=False))
    return found | {"example": torch.cat(list(rows)), "num_examples": starts[-1], "unit": batches[0].unit}
