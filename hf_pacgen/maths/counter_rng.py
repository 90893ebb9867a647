"""Counter-based random numbers: element i of a stream is a pure function of (key, i).

The stream needs no generator state, so any slice of it (a shard, some rows of an embedding) can be drawn alone, the
same on every device and process, and the caller's own random state is never touched.  A hashed 64-bit word serves 64
signs or 8 uniform numbers, several times cheaper than a generator's (22.7M weights on a CPU: signs in 15 ms,
``torch.rand`` in 100 ms).

The hash is the finalizer of SplitMix64 (Steele, Lea, Flood, *Fast splittable pseudorandom number generators*,
2014), computed in wrapping int64 arithmetic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def stream_key(*parts: str | int) -> int:
    """A 64-bit key from what names the stream, for example ``(seed, "probe", pass, batch, name)``.

    >>> stream_key(0, "probe", 1) == stream_key(0, "probe", 1) != stream_key(0, "probe", 2)
    True
    """
    # not hash(), which differs from process to process
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
    words, skip = _words(count, start, per_word=64, device=device)
    return _signs(_hash(key, words), dtype)[skip : skip + count]


def rademacher_rows(key: int, rows: Tensor, width: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """What :func:`rademacher` gives to rows of a matrix, shape (rows, width); ``width`` is a multiple of 64."""
    return _signs(_hash(key, _row_words(rows, width, per_word=64)), dtype).view(-1, width)


def uniform(
    key: int, count: int, *, start: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Elements ``start`` … ``start + count`` of independent numbers uniform on 256 levels of (-1, 1), shape (count,).

    The levels are (2k + 1)/256 - 1: mean 0 and second moment (1 - 2⁻¹⁶)/3, where the continuous law has 1/3.

    >>> values = uniform(stream_key(0, "doc"), 4096)
    >>> bool(values.abs().max() < 1) and abs(values.square().mean().item() - 1 / 3) < 0.02
    True
    """
    words, skip = _words(count, start, per_word=8, device=device)
    return _levels(_hash(key, words)[skip : skip + count], dtype)


def uniform_rows(key: int, rows: Tensor, width: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """What :func:`uniform` gives to rows of a matrix, shape (rows, width); ``width`` is a multiple of 8."""
    return _levels(_hash(key, _row_words(rows, width, per_word=8)), dtype).view(-1, width)


class CenteredBytes:
    """128 times what :func:`uniform` gives, for pieces of several streams at once, into a buffer that is used again.

    One pass serves many small tensors: their streams differ by what is added to the word numbers, not by a call.
    ``size`` is the most elements of a call.
    """

    def __init__(self, size: int, *, device: torch.device | str = "cpu") -> None:
        self._numbers = torch.arange(-(-size // 8), dtype=torch.int64, device=device).mul_(_GOLDEN)
        # a CPU's allocator is slow, and a buffer in the cache is fast; on a GPU memory is what is scarce
        self._memory = self._allocate(self._numbers) if self._numbers.device.type == "cpu" else None
        self._views: dict[int, tuple[Tensor, ...]] = {}

    def __call__(self, pieces: Sequence[tuple[int, int, int]], size: int, key: int = 0) -> Tensor:
        """The values, float32, shape (size,); they hold until the next call.

        A piece is (stream, start, at): its elements from ``start`` on lie at ``at``, both multiples of 8, and it
        reaches to the next.  Every stream is combined with ``key``, by exclusive or.

        >>> pieces = CenteredBytes(64)([(5, 16, 0), (7, 0, 8)], 24)
        >>> bool((pieces[:8] == 128 * uniform(5, 8, start=16)).all())
        True
        >>> bool((pieces[8:] == 128 * uniform(7, 16)).all())
        True
        """
        # a model's blocks have few sizes, and a view costs as much as an addition of a thousand numbers
        views = self._views.get(size)
        if views is None:
            numbers = self._numbers[: -(-size // 8)]
            words, scratch, levels = self._memory or self._allocate(numbers)
            words, scratch = words[: len(numbers)], scratch[: len(numbers)]
            views = (numbers, words, scratch, words.view(torch.uint8)[:size], levels.view(-1)[:size])
            if self._memory is not None:
                self._views[size] = views
        numbers, words, scratch, raw, values = views
        added, cuts = [], []
        for stream, start, at in pieces:
            value = (stream ^ key) + (start - at) // 8 * _GOLDEN
            added.append((value + (1 << 63)) % (1 << 64) - (1 << 63))  # as int64 wraps
            cuts.append(at // 8)
        if len(pieces) == 1:
            torch.add(numbers, added[0], out=words)
        else:
            words.copy_(numbers)
            torch._foreach_add_(list(words.tensor_split(cuts[1:])), added)
        _finish(words, scratch)
        return values.copy_(raw).sub_(127.5)

    def _allocate(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels = numbers.new_empty((len(numbers), 8), dtype=torch.float32)
        return torch.empty_like(numbers), torch.empty_like(numbers), levels


def _words(count: int, start: int, *, per_word: int, device: torch.device | str) -> tuple[Tensor, int]:
    # also how many elements of the first word to skip
    first, last = start // per_word, -(-(start + count) // per_word)
    return torch.arange(first, last, dtype=torch.int64, device=device), start - first * per_word


def _row_words(rows: Tensor, width: int, *, per_word: int) -> Tensor:
    if width % per_word:
        raise ValueError(f"width must be a multiple of {per_word}, so that rows start at words; got {width}.")
    offsets = torch.arange(width // per_word, dtype=torch.int64, device=rows.device)
    return (rows[:, None] * (width // per_word) + offsets).view(-1)


def _hash(key: int, words: Tensor) -> Tensor:
    # eight hashed bytes for every word number, flat; overwrites its argument
    return _finish(words.mul_(_GOLDEN).add_(key))


def _finish(word: Tensor, scratch: Tensor | None = None) -> Tensor:
    # the hash of SplitMix64, in place: this is where the time of a draw goes
    scratch = torch.empty_like(word) if scratch is None else scratch
    for shift, factor in ((30, _MIX_1), (27, _MIX_2), (31, 1)):
        # torch has no unsigned shift: clear the sign bits that an arithmetic one drags in
        torch.bitwise_right_shift(word, shift, out=scratch)
        word.bitwise_xor_(scratch.bitwise_and_((1 << (64 - shift)) - 1))
        if factor != 1:
            word.mul_(factor)
    return word.view(torch.uint8)


def mixed(words: Tensor) -> Tensor:
    """Words of 64 bits whose sums and differences say nothing of those that they were made of, in place."""
    return _finish(words.mul_(_GOLDEN)).view(torch.int64)


def _signs(raw: Tensor, dtype: torch.dtype) -> Tensor:
    # each byte holds eight signs: look them up eight at a time
    return _sign_table(dtype, str(raw.device)).index_select(0, raw.to(torch.int32)).view(-1)


def _levels(raw: Tensor, dtype: torch.dtype) -> Tensor:
    return raw.to(dtype).mul_(2 / 256).add_(1 / 256 - 1)


@lru_cache(maxsize=16)
def _sign_table(dtype: torch.dtype, device: str) -> Tensor:
    rows = [[1.0 if byte >> bit & 1 else -1.0 for bit in range(8)] for byte in range(256)]
    return torch.tensor(rows, dtype=dtype, device=device)
