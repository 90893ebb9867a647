"""A member of an enum without its facts raises: when the module is imported, and where the member is used."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hf_pacgen.config import Estimator, PriorGroups, SpectrumEnd
from hf_pacgen.facts import complete
from hf_pacgen.maths.certified_bound import Bound, certified_bound


class Fruit(Enum):
    APPLE = 1
    PEAR = 2


def made_up(kind: type[Enum]) -> Any:
    """A member that nobody has thought of."""
    member = str.__new__(kind, "made_up") if issubclass(kind, str) else object.__new__(kind)
    member._name_, member._value_ = "MADE_UP", "made_up"
    return member


def test_tables_are_complete() -> None:
    assert complete(Fruit, {Fruit.APPLE: 1, Fruit.PEAR: 2})[Fruit.PEAR] == 2
    with pytest.raises(LookupError, match="Fruit must have one row of facts for each member; missing: PEAR"):
        complete(Fruit, {Fruit.APPLE: 1})
    with pytest.raises(LookupError, match=r"unknown: 'plum'\. Write the rows beside the enum"):
        complete(Fruit, {Fruit.APPLE: 1, Fruit.PEAR: 2, "plum": 3})  # type: ignore[type-var]


@pytest.mark.parametrize("kind", [Bound, Estimator, PriorGroups, SpectrumEnd])
def test_a_new_member_without_facts_raises_at_import(kind: type[Enum], monkeypatch: pytest.MonkeyPatch) -> None:
    """The module's own text, with one more member."""
    module = importlib.import_module(kind.__module__)
    text = Path(str(module.__file__)).read_text(encoding="utf-8")
    head = re.search(rf'class {kind.__name__}\(str, Enum\):\n    """.*"""\n\n', text)
    assert head is not None
    text = text.replace(head[0], f'{head[0]}    MADE_UP = "made_up"\n')
    changed = ModuleType(f"{kind.__module__}_changed")
    monkeypatch.setitem(sys.modules, changed.__name__, changed)  # dataclasses look their module up
    with pytest.raises(LookupError, match=rf"{kind.__name__} must have one row of facts .*missing: MADE_UP"):
        exec(compile(text, str(module.__file__), "exec"), vars(changed))


USES: dict[type[Enum], Callable[[Any], Any]] = {
    Bound: lambda bound: certified_bound(0.1, 1.0, 100, delta=0.05, bound=bound),
    Estimator: lambda estimator: estimator.facts,
    PriorGroups: lambda groups: groups.group_of("layer.weight"),
    SpectrumEnd: lambda end: end.merit(1.0),
}


@pytest.mark.parametrize("kind", USES)
def test_a_member_without_facts_raises_where_it_is_used(kind: type[Enum]) -> None:
    member = made_up(kind)
    with pytest.raises(LookupError, match=r"No facts about .*MADE_UP.*: expected one of .*Add its row"):
        USES[kind](member)
