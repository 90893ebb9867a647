"""In which precision a model computes, and how to keep all of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["LowPrecisionWatch", "full_precision", "wide"]


class LowPrecisionWatch(TorchDispatchMode):
    """Notes whether any operation computes in less than float32 (autocast, or low-precision weights)."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.element_size() < 4:
                self.seen = True
        return out


@contextmanager
def full_precision() -> Iterator[None]:
    """TF32 off: a finite difference needs every bit of float32."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype to compute in with a tensor: its own, at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)
