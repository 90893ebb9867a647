"""Safetensors files of large sums."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from hf_pacgen.files import write_atomically

__all__ = ["write_tensors"]

PIECE = 1 << 22
"""Elements written at a time."""
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file, piece by piece and so without a copy of the tensors in memory.

    Args:
        tensors: of float32, float64 or int64.
        metadata: JSON-able values.

    Raises:
        OSError: it could not be written; the old file is untouched.
    """
    header: dict[str, Any] = {"__metadata__": {key: json.dumps(value) for key, value in metadata.items()}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)  # tensors begin at multiples of their size

    def write(file: BinaryIO) -> None:
        file.write(len(words).to_bytes(8, "little") + words)
        for tensor in tensors.values():
            for piece in tensor.detach().reshape(-1).split(PIECE):
                file.write(piece.cpu().numpy().data)

    write_atomically(path, write)
