"""What the loss of a batch is a mean of: the units by which the losses of batches are pooled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.data.contents import count_examples, documents, labels_of, take
from hf_pacgen.data.losses import IGNORED

__all__ = ["Cut", "UnitRule", "cuts", "find_rule", "rules"]

OTHER_IGNORED = (255,)
"""Numbers besides -100 that models ignore as labels: that of segmentation."""


@dataclass(frozen=True)
class UnitRule:
    """How the units of a batch are counted.

    Attributes:
        name: what they are, in words.
        count: their number in a batch.
        adds: whether the loss of a batch is the sum over its units already, and not their mean.
        pools: whether the loss of a batch is what its parts say; else it depends on how the data is cut.
    """

    name: str
    count: Callable[[Any], float]
    adds: bool = False
    pools: bool = True


@dataclass(frozen=True)
class Cut:
    """A batch and its parts, with a loss each."""

    whole: Any
    parts: Sequence[Any]


def rules(names: Sequence[str], *, causal: bool, ignored: Sequence[int] = ()) -> list[UnitRule]:
    """What the units may be, the likelier first.

    Args:
        names: of labels.
        causal: whether labels are shifted by one.
        ignored: further labels that may not count.
    """

    def labeled(skipped: int, *dropped: int) -> Callable[[Any], float]:
        def count(batch: Any) -> float:
            labels = labels_of(batch, names)
            if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim < 2:
                return count_examples(batch)
            counted = labels[..., skipped:]
            return int(((counted != IGNORED) & ~torch.isin(counted, torch.tensor(dropped).to(counted))).sum())

        return count

    def kept(batch: Any) -> float:
        labels = labels_of(batch, names)
        if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point():
            return int((labels != IGNORED).sum())
        return count_examples(batch)

    found = [UnitRule("labels other than -100", labeled(int(causal)))]
    found.append(UnitRule("examples", count_examples))
    found.append(UnitRule("examples whose label is not -100", kept))
    found.append(UnitRule("labels other than -100", labeled(int(not causal))))
    for number in (*OTHER_IGNORED, *ignored):
        found.append(UnitRule(f"labels other than {number}", labeled(int(causal), number)))
    found.append(UnitRule("examples, over which the model's loss is a sum", count_examples, adds=True))
    return found


def cuts(batch: Any, size: int, names: Sequence[str]) -> Iterator[Cut]:
    """A batch in two parts, in several ways; nothing where it cannot be told apart."""
    if not isinstance(batch, Mapping) or documents(batch) is not None or not _is_by_row(batch, size):
        return
    if size > 1:
        half = size // 2
        yield Cut(batch, (take(batch, range(half), size), take(batch, range(half, size), size)))
        if size > 4:  # parts of more than one example where possible: some losses need a second one
            few = max(2, size // 4)
            yield Cut(batch, (take(batch, range(few), size), take(batch, range(few, size), size)))
    labels = labels_of(batch, names)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim < 2:
        return
    # parts with as many labels each would not tell labels from examples: the first example loses half of its own
    counted = (labels[0].reshape(-1)[1:] != IGNORED).nonzero().flatten() + 1
    if not len(counted):
        return
    key = next(name for name in names if batch.get(name) is labels)
    poor = take(batch, range(max(1, size // 2)), size)
    changed = poor[key].clone(memory_format=torch.contiguous_format)
    changed[0].view(-1)[counted[: (len(counted) + 1) // 2]] = IGNORED
    poor[key] = changed
    rich = take(batch, range(size // 2, size), size)
    joined = {
        k: torch.cat([poor[k], rich[k]]) if isinstance(v, Tensor) and v.ndim and len(v) == size else v
        for k, v in batch.items()
    }
    if all(isinstance(v, Tensor) for v in batch.values()):
        yield Cut(joined, (poor, rich))


def find_rule(
    candidates: Sequence[UnitRule], losses: Sequence[tuple[Cut, float, Sequence[float]]], tolerance: float
) -> UnitRule | None:
    """The first rule by which every batch's loss is that of its parts; None without one.

    Args:
        candidates: in the order of preference.
        losses: of wholes and their parts.
        tolerance: relative.
    """
    return next((rule for rule in candidates if all(_fits(rule, *known, tolerance) for known in losses)), None)


def _fits(rule: UnitRule, cut: Cut, whole: float, parts: Sequence[float], tolerance: float) -> bool:
    scale = max(map(abs, (whole, *parts)))
    if rule.adds:
        return abs(whole - sum(parts)) <= tolerance * scale
    counts = [rule.count(part) for part in cut.parts]
    total = rule.count(cut.whole)
    # a part without units has no mean
    mean = sum(count * loss for count, loss in zip(counts, parts, strict=True) if count)
    return abs(sum(counts) - total) <= 1e-6 * total and abs(mean - total * whole) <= tolerance * scale * max(total, 1)


def _is_by_row(batch: Mapping[str, Any], size: int) -> bool:
    """Whether every tensor of a batch has one row for each example."""
    for value in batch.values():
        if isinstance(value, Tensor) and value.ndim and len(value) != size:
            return False
        if isinstance(value, (list, tuple)) and len(value) != size:
            return False
    return True
