"""Errors in words."""

from __future__ import annotations

import pytest

from hf_pacgen.errors import InputError, describe, few, listing, refusing


def test_an_error_of_another_library_becomes_a_sentence_with_a_remedy() -> None:
    with (
        pytest.raises(InputError, match=r"^The file cannot be read: the disk is gone. Save it again.$") as caught,
        refusing("The file cannot be read", "Save it again."),
    ):
        raise ValueError("the disk is gone")
    assert isinstance(caught.value.__cause__, ValueError)


def test_what_is_said_already_is_said_once() -> None:
    with pytest.raises(InputError, match=r"^said$"), refusing("The file cannot be read"):
        raise InputError("said")


def test_other_kinds_pass() -> None:
    with pytest.raises(KeyError), refusing("The file cannot be read", kind=OSError):
        raise KeyError("a")


def test_an_error_without_words_is_named() -> None:
    assert describe(ValueError()) == "ValueError"


def test_long_lists_are_cut() -> None:
    assert few(["a", "b"], most=2) == "a, b"
    assert listing(["a", "b", "c"], most=1) == "'a' and 2 more"
