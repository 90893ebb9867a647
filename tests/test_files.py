"""A file is the old one or the new one, and never a part of either."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pytest

from hf_pacgen.files import write_atomically


def test_the_new_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    for words in (b"old", b"new"):
        write_atomically(tmp_path / "file", lambda file, words=words: file.write(words))  # type: ignore[misc]
        assert (tmp_path / "file").read_bytes() == words
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt("stop here")

    with pytest.raises(KeyboardInterrupt, match="stop here"):
        write_atomically(tmp_path / "file", fail)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_atomically(tmp_path / "nowhere" / "file", lambda file: file.write(b"x"))
