"""What a batch holds: its tensors, its labels, and its examples one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["LABEL_NAMES", "batch_tensors", "count_examples", "documents", "labels_of", "take", "truncate"]

LABEL_NAMES = ("labels", "label", "label_ids")
"""Under which a batch has its labels where nobody says otherwise."""


def labels_of(batch: Any, names: Sequence[str] = LABEL_NAMES) -> Any:
    """The labels of a batch, by the first of some names that it has; None without any."""
    if not isinstance(batch, Mapping):
        return None
    return next((batch[name] for name in names if batch.get(name) is not None), None)


def count_examples(batch: Any) -> int:
    """Number of examples in a batch: of its labels, be they a tensor or a list of nested ones, or of its first tensor.

    Rows that hold several documents one after another, without padding, count one example for each.
    """
    if (several := documents(batch)) is not None:
        return len(several)
    labels = labels_of(batch)
    # the labels of detection and segmentation are a list: one entry an example, with as many boxes as it has
    if isinstance(labels, (list, tuple)) and labels:
        return len(labels)
    ahead = [labels, *(batch.values() if isinstance(batch, Mapping) else ())]
    for tensor in (*(value for value in ahead if isinstance(value, Tensor)), *batch_tensors(batch)):
        if tensor.ndim:
            return tensor.shape[0]
    raise ValueError(
        f"Cannot tell how many examples a batch of type {type(batch).__name__} has: expected a dict or a sequence "
        "with at least one tensor that has a batch dimension."
    )


def documents(batch: Any) -> list[int] | None:
    """Where the documents of a batch begin that is one row without padding; None for any other batch.

    Such a batch is told by positions that start anew within its only row (``padding_free`` of TRL, flattening
    collators of transformers), and by having no attention mask.
    """
    positions = batch.get("position_ids") if isinstance(batch, Mapping) else None
    if not isinstance(positions, Tensor) or positions.ndim != 2 or len(positions) != 1 or "attention_mask" in batch:
        return None
    starts: list[int] = (positions[0] == 0).nonzero().flatten().tolist()
    return starts if len(starts) > 1 and starts[0] == 0 else None


def batch_tensors(batch: Any) -> Iterator[Tensor]:
    """The tensors in a batch of any nesting, labels first."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for key in (*(k for k in LABEL_NAMES if k in batch), *batch):
            yield from batch_tensors(batch[key])
    elif isinstance(batch, (list, tuple)):
        for item in batch:
            yield from batch_tensors(item)


def take(batch: Any, rows: Sequence[int], size: int | None = None) -> Any:
    """Some examples of a batch, of whatever nesting."""
    size = count_examples(batch) if size is None else size
    if isinstance(batch, Tensor):
        return batch[list(rows)] if batch.ndim and len(batch) == size else batch
    if isinstance(batch, Mapping):
        return {key: take(value, rows, size) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        if _is_by_example(batch, size):
            return type(batch)(batch[row] for row in rows)
        return type(batch)(take(item, rows, size) for item in batch)
    return batch


def truncate(batch: Any, count: int, size: int) -> Any:
    """The first examples of a batch of ``size``."""
    starts = documents(batch)
    if starts is None:
        return take(batch, range(count), size)
    end, length = starts[count], batch["position_ids"].shape[1]
    # what is as long as the row is cut; other tensors of such a batch count places in the row, and are made anew
    cut: dict[str, Any] = {
        k: v[:, :end] for k, v in batch.items() if isinstance(v, Tensor) and v.ndim > 1 and v.shape[1] == length
    }
    bounds = torch.tensor([*starts[:count], end])
    for key, value in batch.items():
        if key.startswith("cu_seq_lens"):
            cut[key] = bounds.to(value)
        elif key.startswith("max_length"):
            cut[key] = bounds.diff().max().to(value) if isinstance(value, Tensor) else int(bounds.diff().max())
    return cut


def _is_by_example(values: Sequence[Any], size: int) -> bool:
    """Whether a list has one entry for each example, and is not a list of tensors that have one."""
    if len(values) != size:
        return False
    return not all(isinstance(v, Tensor) and v.ndim and len(v) == size for v in values)
