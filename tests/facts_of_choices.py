"""Members that a closed choice has for the time of a test."""

from __future__ import annotations

from typing import Any

import pytest

from hf_pacgen.facts import Choice


def added(kind: type[Choice], monkeypatch: pytest.MonkeyPatch, *facts: Any) -> Any:
    """A member that a choice has for the time of a test, with its facts if they are given."""
    member = str.__new__(kind, "made_up")
    member._name_, member._value_ = "MADE_UP", "made_up"
    if facts:
        (member.facts,) = facts
    monkeypatch.setitem(kind._value2member_map_, "made_up", member)
    monkeypatch.setitem(kind._member_map_, "MADE_UP", member)
    monkeypatch.setattr(kind, "_member_names_", [*kind._member_names_, "MADE_UP"])
    return member
