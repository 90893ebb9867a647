"""How a result is written down, and when two of them count as the same."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Stored = dict[str, Any]
"""What JSON holds of one case: a number, a token, or the digest of tensors, by the name of the value."""

ROUNDING = ("blend", "residuals")
"""Values that are made of rounding errors (where a weight has no curvature): on another machine they are others."""

COUNT, SUM, NORM = 1, 2, 3  # places in a stored tensor, after its digest


def stored(values: Mapping[str, Any]) -> Stored:
    """All values of a case, as JSON holds them."""
    return {name: _stored(value) for name, value in values.items()}


def _stored(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        # strict JSON has neither NaN nor infinity; repr, which json uses for the others, loses no bit
        return value if math.isfinite(value) else str(value)
    return _summary(dict(_leaves("", value)))


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor and number in nested mappings and sequences, with its path."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(f"{name}/{key}", part)
    elif isinstance(value, Tensor):
        yield name, _whole(value.detach())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, part in enumerate(value):
            yield from _leaves(f"{name}/{index}", part)
    else:
        yield name, torch.tensor(math.nan if value is None else float(value), dtype=torch.float64)


def _whole(tensor: Tensor) -> Tensor:
    """A tensor of which every process may hold a part; all processes call this together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _summary(tensors: dict[str, Tensor]) -> list[Any]:
    """Digest of the exact bytes, number of elements, sum and norm: the last three tell how far two results differ."""
    digest = hashlib.blake2b(digest_size=8)
    count, total, squares = 0, 0.0, 0.0
    for name in sorted(tensors):  # the order of a dictionary is not part of a result
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        count += tensor.numel()
        total += tensor.double().sum().item()
        squares += tensor.double().square().sum().item()
    return [digest.hexdigest(), count, _stored(total), _stored(math.sqrt(squares))]


def fingerprint() -> str:
    """What this machine makes of a few fixed computations: it changes with the CPU and the libraries below torch."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for dtype in (torch.float32, torch.float64):
        a, b = (torch.randn(37, 37, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
        product = a @ b
        parts = [product, product.softmax(-1), functional.gelu(a), functional.silu(b), functional.layer_norm(a, (37,))]
        parts += [a.norm(), product.sum(), a.tanh().log1p().nan_to_num(), torch.linalg.eigvalsh(a + a.T)]
        parts.append(functional.scaled_dot_product_attention(a[None, None], b[None, None], a[None, None]))
        parts.append(functional.conv2d(a[None, None], b[None, None, :3, :3], stride=2))
        found[str(dtype)] = parts
    return _summary(dict(_leaves("", found)))[0]


@lru_cache
def environment() -> dict[str, str]:
    """What has to be the same for results to be the same to the last bit."""
    return {"torch": torch.__version__, "fingerprint": fingerprint()}


def differences(found: Stored, expected: Stored, tolerance: float | None) -> list[str]:
    """A line for each expected value that came out differently; ``tolerance`` None asks for the same bits.

    Values that are not expected are left alone: a result may learn to say more.
    """
    lines = []
    for name, value in expected.items():
        if tolerance is not None and name in ROUNDING:
            continue
        if name not in found:
            lines.append(f"{name}: expected {value}, and there is none")
        elif not _same(found[name], value, tolerance):
            lines.append(f"{name}: expected {value}, found {found[name]}")
    return lines


def _same(found: Any, expected: Any, tolerance: float | None) -> bool:
    if tolerance is None or type(found) is not type(expected):
        return json.dumps(found) == json.dumps(expected)  # which tells 1 from 1.0 and from True, and 0.0 from -0.0
    if isinstance(expected, list):
        if found[COUNT] != expected[COUNT] or not all(isinstance(part[NORM], float) for part in (found, expected)):
            return bool(found[COUNT:] == expected[COUNT:])
        # a sum may cancel, so it is as far off as the elements' errors together may be
        reach = tolerance * abs(expected[NORM])
        return (
            abs(found[NORM] - expected[NORM]) <= reach
            and abs(found[SUM] - expected[SUM]) <= reach * expected[COUNT] ** 0.5
        )
    if isinstance(expected, float):
        return abs(found - expected) <= tolerance * abs(expected)
    return bool(found == expected)


def written(document: Mapping[str, Any]) -> str:
    """JSON with one value on a line, so that a diff shows what changed."""
    about = {key: value for key, value in document.items() if key != "cases"}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in about.items()]
    cases = []
    for case, values in sorted(document["cases"].items()):
        rows = [f"   {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in values.items()]
        cases.append(f"  {json.dumps(case)}: {{\n" + ",\n".join(rows) + "\n  }")
    return "\n".join(["{", *lines, ' "cases": {', ",\n".join(cases), " }", "}", ""])
