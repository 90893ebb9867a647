"""Comparisons inside processes that share a model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hf_pacgen.distributed.shards import is_sharded


def check(ok: bool, what: str) -> None:
    if not ok:
        raise AssertionError(what)


def same(found: dict[str, Tensor], expected: dict[str, Tensor], what: str, tolerance: float = 1e-5) -> None:
    check(found.keys() == expected.keys(), f"{what}: {found.keys() ^ expected.keys()}")
    for name, value in found.items():
        distance = (value - expected[name]).abs().max().item() / max(expected[name].abs().max().item(), 1e-3)
        check(distance <= tolerance, f"{what} of {name} differ by {distance}")


def whole(tensors: Any) -> dict[str, Tensor]:
    return {n: (t.full_tensor() if is_sharded(t) else t).detach().clone() for n, t in dict(tensors).items()}
