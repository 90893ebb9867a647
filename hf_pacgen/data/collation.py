"""Examples of a dataset as batches, and what a batch holds."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import default_data_collator

from hf_pacgen.data.contents import LABEL_NAMES
from hf_pacgen.model.state import base_model

__all__ = ["PADDING", "collate"]

PADDING = {"labels": -100, "label_ids": -100, "attention_mask": 0, "token_type_ids": 0}


def collate(rows: list[Any], model: nn.Module) -> Any:
    """Stack the columns of examples; pad ragged integer sequences as the model expects."""
    if not isinstance(rows[0], Mapping):
        return torch.utils.data.default_collate(rows)
    rows = [dict(row) for row in rows]
    ragged = [
        key for key, value in rows[0].items() if _length(value) is not None and len({_length(r[key]) for r in rows}) > 1
    ]
    if ragged:
        lengths = [_length(row[ragged[0]]) or 0 for row in rows]
        for row, length in zip(rows, lengths, strict=True):
            row.setdefault("attention_mask", [1] * length)
        keys = ragged if "attention_mask" in ragged else [*ragged, "attention_mask"]
        config = getattr(model, "config", None)
        pad_token = getattr(config, "pad_token_id", None) or 0
        for key in keys:
            longest = max(_length(row[key]) or 0 for row in rows)
            fill = PADDING.get(key, pad_token)
            for row in rows:
                values = [int(v) for v in row[key]]
                row[key] = values + [fill] * (longest - len(values))
    return default_data_collator(rows, return_tensors="pt")


def _length(value: Any) -> int | None:
    """Length of a one-dimensional integer sequence, None for anything else."""
    if isinstance(value, Tensor):
        return len(value) if value.ndim == 1 and not value.is_floating_point() else None
    if hasattr(value, "ndim"):
        return len(value) if value.ndim == 1 and value.dtype.kind in "iub" else None
    if isinstance(value, (list, tuple)):
        return len(value) if all(isinstance(v, int) for v in value) else None
    return None


def _model_columns(data: Any, model: nn.Module) -> Any:
    """Drop the columns that are no input of the model, as Trainer does."""
    base = base_model(model)
    parameters = inspect.signature(base.forward).parameters
    names = {name for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    columns = list(data.column_names or [])
    inputs = [column for column in columns if column in names and column not in LABEL_NAMES]
    if columns and not inputs:
        raise ValueError(
            f"None of the dataset's columns {columns} is an input of {type(base).__name__}, which takes "
            f"{sorted(names)}. Tokenize or process the dataset first, or pass collate_fn."
        )
    keep = [column for column in columns if column in names or column in LABEL_NAMES]
    return data.select_columns(keep) if columns and len(keep) < len(columns) else data
