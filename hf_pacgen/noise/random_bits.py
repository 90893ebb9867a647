"""Counter-based random numbers: element i of a stream is a pure function of (key, i).

The stream needs no generator state, so any slice of it (a shard, some rows of an embedding)
can be drawn alone, the same on every device and process, and the caller's own random state
is never touched.  A hashed 64-bit word serves 64 signs or 8 uniform numbers, which makes a
probe several times cheaper than a generator's (measured on 22.7M weights on CPU: 15 ms for
signs, 100 ms for ``torch.rand``).

The hash is the finalizer of SplitMix64 (Steele, Lea, Flood, *Fast splittable pseudorandom
number generators*, 2014), computed in wrapping int64 arithmetic.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["rademacher", "stream_key", "uniform"]

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def stream_key(*parts: str | int) -> int:
    """A 64-bit key from what names the stream, for example ``(seed, "probe", pass, batch, name)``.

    >>> stream_key(0, "probe", 1) == stream_key(0, "probe", 1) != stream_key(0, "probe", 2)
    True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def rademacher(
    key: int, count: int, *, start: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Elements ``start`` … ``start + count`` of a stream of independent signs ±1, shape (count,).

    >>> signs = rademacher(stream_key(0, "doc"), 1000)
    >>> bool((rademacher(stream_key(0, "doc"), 10, start=500) == signs[500:510]).all())
    True
    """
    raw, skip = _bytes(key, count, start, elements_per_word=64, device=device)
    # Each byte holds eight signs: look them up eight at a time.
    signs = _sign_table(dtype, str(device)).index_select(0, raw.to(torch.int32)).view(-1)
    return signs[skip : skip + count]


def uniform(
    key: int, count: int, *, start: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Elements ``start`` … ``start + count`` of independent numbers uniform on 256 levels of (-1, 1), shape (count,).

    The levels are (2k + 1)/256 - 1 for k = 0 … 255: mean 0 and second moment (1 - 2⁻¹⁶)/3, within
    1.6e-5 of the continuous law's 1/3.

    >>> values = uniform(stream_key(0, "doc"), 4096)
    >>> bool(values.abs().max() < 1) and abs(values.square().mean().item() - 1 / 3) < 0.02
    True
    """
    raw, skip = _bytes(key, count, start, elements_per_word=8, device=device)
    return raw[skip : skip + count].to(dtype).mul_(2 / 256).add_(1 / 256 - 1)


def _bytes(
    key: int, count: int, start: int, *, elements_per_word: int, device: torch.device | str
) -> tuple[Tensor, int]:
    first = start // elements_per_word
    last = -(-(start + count) // elements_per_word)
    word = torch.arange(first, last, dtype=torch.int64, device=device).mul_(_GOLDEN).add_(key)
    word = word.bitwise_xor_(_logical_shift(word, 30)).mul_(_MIX_1)
    word = word.bitwise_xor_(_logical_shift(word, 27)).mul_(_MIX_2)
    word = word.bitwise_xor_(_logical_shift(word, 31))
    return word.view(torch.uint8), start - first * elements_per_word


def _logical_shift(word: Tensor, bits: int) -> Tensor:
    # torch has no unsigned shift: clear the sign bits an arithmetic one drags in
    return (word >> bits).bitwise_and_((1 << (64 - bits)) - 1)


@lru_cache(maxsize=16)
def _sign_table(dtype: torch.dtype, device: str) -> Tensor:
    rows = [[1.0 if byte >> bit & 1 else -1.0 for bit in range(8)] for byte in range(256)]
    return torch.tensor(rows, dtype=dtype, device=device)
