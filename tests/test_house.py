"""The counts of examples/benchmarks/house.py, on a package made for the purpose."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("house", "common"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import house

    return house


FILES = {
    "shards.py": "def local(tensor):\n    return tensor.to_local()\n",
    "__init__.py": "from made.shards import local\n",
    "behind_a_door.py": "from made import local\n",
    "by_a_string.py": "def knows(tensor):\n    return hasattr(tensor, 'to_local')\n",
    "in_words.py": '"""Not of shards."""\n\n# nor DTensor\nraise_with = "shards are refused"\n',
    "another.py": "def f():\n    local = 1  # -- its own\n    return local\n",
}


def test_shards_are_found_behind_another_name(house: Any, tmp_path: Path) -> None:
    package = tmp_path / "made"
    package.mkdir()
    for name, source in FILES.items():
        (package / name).write_text(source)
    assert house.files_that_know_shards(package) == ["__init__.py", "behind_a_door.py", "by_a_string.py", "shards.py"]
    figures = house.file_figures(package)
    assert figures["lines of the package"] == 13
    assert figures["lines per comment"] == 13 / 2


def test_rulers_and_notes_to_tools_are_no_words(house: Any, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("# ----- a ruler\nimport os  # noqa: F401\nx = 1  # why\n")
    figures = house.file_figures(tmp_path)
    assert (figures["lines per comment"], figures["lines per comment in words"]) == (1, 3)


def test_every_figure_has_its_row(house: Any) -> None:
    figures = house.entered_figures() | house.file_figures()
    cost = {"product / gradient", "score / gradient", "noisy / plain step"}
    assert figures.keys() == house.WAYS.keys() - cost
    assert all(value > 0 for name, value in figures.items() if name != "files over 300 lines")
    assert sys.getprofile() is None
