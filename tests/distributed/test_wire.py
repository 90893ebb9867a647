"""Bytes that a process sends."""

from __future__ import annotations

from hf_pacgen.distributed.wire import gathered, reduced


def test_one_process_sends_nothing_and_many_twice_their_sums() -> None:
    assert gathered(100, 1) == reduced(100, 1) == 0
    assert gathered(100, 2) == 50 and reduced(100, 2) == 100
    assert reduced(10**6, 1000) == 2 * 999_000
