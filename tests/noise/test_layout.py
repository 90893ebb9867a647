"""Flat layouts: every element has one place, whatever the sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_pacgen.noise.layout import Layout


def tensors() -> dict[str, Tensor]:
    shapes = {"a": (3, 5), "empty": (0,), "b": (100, 7), "scalar": (), "c": (64,), "d": (33,)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("block_size", [16, 64, 128, 1 << 16])
def test_every_element_lies_in_one_block(block_size: int) -> None:
    given = tensors()
    layout = Layout(given, block_size=block_size)
    buffers = layout.buffers()
    for block in layout.blocks:
        assert 0 < block.size <= block_size and block.begin % 8 == 0
        buffers[block.pool][block.begin : block.end] += layout.gather(block, given)
        assert all(s.at % 8 == s.start % 8 == 0 for s in block.segments)
    views = layout.views(buffers)
    assert all(views[name].equal(tensor) for name, tensor in given.items())
    assert buffers[layout.blocks[0].pool].count_nonzero() == sum(t.numel() for t in given.values())
    assert [block.index for block in layout.blocks] == list(range(len(layout.blocks)))


def test_large_tensors_need_no_copy_and_missing_ones_are_zeros() -> None:
    given = tensors()
    layout = Layout(given, block_size=64)
    (only,) = [block for block in layout.blocks if block.only is not None and block.only.name == "c"]
    assert layout.gather(only, given).data_ptr() == given["c"].data_ptr()
    for block in layout.blocks:
        assert not layout.gather(block, dict.fromkeys(given)).any()
    mixed = {**given, "a": None}
    several = next(block for block in layout.blocks if any(s.name == "a" for s in block.segments))
    found = layout.gather(several, mixed, torch.float64)
    for s in several.segments:
        part = found[s.at : s.at + s.count]
        assert part.dtype == torch.float64 and part.any() != (s.name == "a")


def test_dtypes_have_buffers_of_their_own() -> None:
    layout = Layout({"half": torch.ones(5, dtype=torch.bfloat16), "full": torch.ones(5)})
    assert sorted(str(b.dtype) for b in layout.buffers().values()) == ["torch.bfloat16", "torch.float32"]
    assert {b.dtype for b in layout.buffers(torch.float32).values()} == {torch.float32}
    assert {str(b.wide) for b in layout.blocks} == {"torch.float32"}
