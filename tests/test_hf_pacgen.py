"""The façade: importing hf_pacgen is cheap, since each name is loaded when first asked for."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_pacgen

LIBRARIES = "accelerate huggingface_hub jinja2 numpy PIL safetensors torch tqdm transformers yaml".split()
"""What a score needs, and an import does not."""
HEAVY = "datasets evaluate gradio matplotlib pandas peft pyarrow rich scipy sklearn trl transformers.trainer".split()
"""What a score does not need."""
SHELLS = [f"hf_pacgen.{name}" for name in "command_line show.cards show.plots show.tables training".split()]
MOST_MODULES = 90
"""Modules of the standard library and of the package that ``import hf_pacgen`` may load; it takes about 45."""
LATER = hf_pacgen._LATER


def loaded_by(*imports: str) -> list[set[str]]:
    """Names of the modules that a fresh process has after each of these imports."""
    code = "import sys\n" + "\n".join(f"{line}\nprint(*sys.modules)" for line in imports)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(hf_pacgen.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_an_import_brings_the_standard_library_alone() -> None:
    before, package, errors = loaded_by("pass", "import hf_pacgen", "import hf_pacgen.errors")
    assert errors & {*HEAVY, *LIBRARIES} == set()
    assert {name for name in errors if name.startswith("hf_pacgen")} == {
        "hf_pacgen",
        "hf_pacgen.errors",
        "hf_pacgen.old_paths",
        "hf_pacgen.register",
    }
    assert len(package - before) <= MOST_MODULES


def test_a_score_and_a_certificate_bring_no_more_than_they_need() -> None:
    score, certificate = loaded_by("from hf_pacgen import pacgen", "from hf_pacgen import certify")
    assert "hf_pacgen.measures.pacgen" in score and LATER["certify"] in certificate
    # transformers' models, of which a prior may be one, load some of these where they are installed
    (models,) = loaded_by("import transformers.modeling_utils, transformers.data")
    assert "transformers.trainer" not in models
    assert score & {*HEAVY, "hf_pacgen.certify", *SHELLS} - models == set()
    assert certificate & {*HEAVY, *SHELLS} - models == set()


@pytest.mark.parametrize(
    "first",
    [
        "import hf_pacgen.register, hf_pacgen.certify",
        "from hf_pacgen.register import metric_path; from hf_pacgen.certify.splits import train_prior",
        "from hf_pacgen import register, certify; import hf_pacgen.register, hf_pacgen.certify.splits",
    ],
)
def test_functions_that_share_their_name_with_a_module(first: str) -> None:
    second = "import hf_pacgen; from hf_pacgen import certify, register"
    kinds = "print({type(f).__name__ for f in (certify, register, hf_pacgen.certify, hf_pacgen.register)})"
    assert loaded_by(first, f"{second}; {kinds}")[1] == {"{'function'}"}


def test_names_are_listed_and_starred() -> None:
    assert {*hf_pacgen.__all__, "__version__"} <= set(dir(hf_pacgen))
    assert set(LATER) == set(hf_pacgen.__all__)
    given: dict[str, object] = {}
    exec("from hf_pacgen import *", given)
    assert set(hf_pacgen.__all__) <= set(given)


def test_what_is_loaded_later_is_what_type_checkers_are_told() -> None:
    (told,) = [
        node
        for node in ast.parse(Path(hf_pacgen.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    imports = [node for node in told.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == LATER


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'hf_pacgen' has no attribute 'pacgn'"):
        hf_pacgen.pacgn  # noqa: B018


def test_modules_are_attributes_of_the_package() -> None:
    """``import hf_pacgen`` loaded all of them once, so ``hf_pacgen.config`` needed no import of its own."""
    code = "import hf_pacgen\nprint(hf_pacgen.config.ScoreConfig.__name__, hf_pacgen.errors.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["ScoreConfig", "hf_pacgen.errors"], done.stderr
    for name in ("not_there", "__wrapped__", "_config"):
        with pytest.raises(AttributeError, match=f"module 'hf_pacgen' has no attribute '{name}'"):
            getattr(hf_pacgen, name)
