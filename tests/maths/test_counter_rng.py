"""Counter-based random numbers: slices agree, and the numbers are as random as they claim."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_pacgen.maths.counter_rng import rademacher, rademacher_rows, stream_key, uniform, uniform_rows


@pytest.mark.parametrize("draw", [rademacher, uniform])
def test_any_slice_is_a_slice_of_the_stream(draw: Callable[..., Tensor]) -> None:
    whole = draw(7, 1000)
    for start, count in ((0, 1), (1, 63), (63, 2), (64, 64), (500, 500), (999, 1), (10, 0)):
        assert draw(7, count, start=start).equal(whole[start : start + count])


def test_rows_are_rows_of_the_stream() -> None:
    rows = torch.tensor([5, 0, 3])
    assert rademacher_rows(7, rows, 128).equal(rademacher(7, 10 * 128).view(10, 128)[rows])
    assert uniform_rows(7, rows, 24, dtype=torch.float64).equal(uniform(7, 240, dtype=torch.float64).view(10, 24)[rows])
    with pytest.raises(ValueError, match=r"width must be a multiple of 64.*got 24"):
        rademacher_rows(7, rows, 24)


def test_moments_and_independence() -> None:
    n = 1 << 20
    signs, values = rademacher(stream_key(1, "a"), n), uniform(stream_key(1, "a"), n, dtype=torch.float64)
    assert set(signs.unique().tolist()) == {-1.0, 1.0} and len(values.unique()) == 256
    limit = 5 / n**0.5
    for stream in (signs, values * 3**0.5):
        assert abs(stream.mean()) < limit and abs(stream.square().mean() - 1) < 2 * limit
        for lag in (1, 2, 8, 63, 64, 4096):
            assert abs((stream[lag:] * stream[:-lag]).mean()) < limit, lag
    for other in (stream_key(1, "b"), stream_key(2, "a"), stream_key(1, "a") + 1):
        assert abs((signs * rademacher(other, n)).mean()) < limit


def test_keys_tell_names_from_numbers_and_leave_the_callers_state_alone() -> None:
    keys = [stream_key(0, "a"), stream_key("0", "a"), stream_key(0, "a", 0), stream_key(0, "b"), stream_key(1, "a")]
    assert len(set(keys)) == len(keys) and all(-(2**63) <= key < 2**63 for key in keys)
    state = torch.get_rng_state()
    rademacher(1, 100), uniform(1, 100)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    assert rademacher(3, 100, dtype=dtype).equal(rademacher(3, 100).to(dtype))
    assert uniform(3, 100, dtype=dtype).dtype == dtype
