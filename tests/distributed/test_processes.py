"""A process among others that have failed: the cause is told, and not the connection that was lost with it."""

from __future__ import annotations

from typing import Any

import pytest

from hf_pacgen.distributed.processes import Processes


class Left(Processes):
    """One of two processes, whose other has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 2

    def gather(self, value: Any) -> list[Any]:
        raise RuntimeError("Connection closed by peer")

    def _store(self) -> Any:
        raise RuntimeError("Broken pipe")

    def _tell(self) -> None:
        """There is nobody to tell."""


def test_an_error_of_its_own_says_more_than_the_lost_connection() -> None:
    with pytest.raises(ValueError, match=r"^the cause$") as caught:
        with Left().together():
            raise ValueError("the cause")
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_without_one_the_lost_connection_is_the_error() -> None:
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        with Left().together():
            pass


def test_a_store_that_is_gone_does_not_stop_a_batch() -> None:
    Left().check()
