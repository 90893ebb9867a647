"""Every field of a result says what it is; whoever forgets it hears of it when the class is made."""

from __future__ import annotations

import importlib
import io
import os
import pkgutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evaluate
import pytest
from rich.console import Console
from sample_results import sample_result

import hf_pacgen
import hf_pacgen.results
from hf_pacgen.results.base import Result
from hf_pacgen.results.fields import Facts, like, measured, other
from hf_pacgen.results.measures import MEASURES, Measures
from hf_pacgen.results.pacgen import PACGenResult
from hf_pacgen.results.sharpness import Sharpness
from hf_pacgen.show.cards.update import card_section, evaluation_results
from hf_pacgen.show.tables import print_report

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", [PACGenResult, Sharpness, Result])
def test_a_field_that_does_not_say_what_it_is(kind: Any) -> None:
    for value in ({}, {"margin": 1.0}):
        with pytest.raises(TypeError, match=r"The fields \['margin'\] of Wider do not say what they are: declare"):
            type("Wider", (kind,), {"__annotations__": {"margin": "float"}, **value})


def test_a_new_field_is_a_metric_a_row_and_a_line_of_the_docs() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Margins(Result):
        """Distances."""

        kind = "margins"
        margin: float = measured("μ", key="margin", unit="px", better="higher", title="Margin", says="least distance")
        taken: float = other("time taken", default=0.0)

    facts = Margins.facts()
    assert Margins(margin=2.0).metrics("eval_") == {"eval_margin": 2.0}
    assert facts["margin"].name == "Margin (μ, px; higher is better)" and facts["margin"].axis == "μ, in px"
    assert str(Margins.__doc__).endswith(
        "Attributes:\n    margin: least distance, in px; higher is better.\n    taken: time taken."
    )
    assert like(Margins, "margin").metadata["facts"] is facts["margin"]


@dataclass(frozen=True, kw_only=True)
class Wider(PACGenResult):
    """A score with one more metric, which nothing else has heard of."""

    margin: float = measured("μ", key="margin", unit="px", better="higher", title="Margin", says="least distance")
    filled: float = measured("filling", key="filled", span="[0, 1]", title="Filling", says="share of it", default=0.25)


def test_a_new_metric_is_computed_and_shown_without_touching_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: value for name, value in vars(sample_result()).items() if name != "status"}
    result = Wider(**known, margin=1234.5)
    new = {"margin": 1234.5, "filled": 0.25}
    assert result.metrics("eval_") == {f"eval_{key}": n for key, n in {**sample_result().metrics(), **new}.items()}

    metric = evaluate.load(hf_pacgen.metric_path())
    monkeypatch.setattr(sys.modules[type(metric).__module__], "pacgen", lambda *given, **options: result)
    assert metric.compute(model=object(), data=[]) == result.metrics()

    stream = io.StringIO()
    print_report(result, console=Console(file=stream, width=120))
    rows = [" ".join(line.replace("│", " ").split()) for line in stream.getvalue().splitlines()]
    assert "μ 1,234 least distance, in px; higher is better" in rows and "filling 25.0 % share of it" in rows

    section = card_section(result)
    assert "| μ, least distance, in px; higher is better | 1,234 | |\n| filling, share of it | 25.0 % | |" in section
    entries = {entry.metric_type: (entry.metric_name, entry.metric_value) for entry in evaluation_results(result)}
    assert entries["margin"] == ("Margin (μ, px; higher is better)", 1234.5) and entries["filled"] == ("Filling", 0.25)


def test_a_direction_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="better must be 'lower', 'higher' or None; got 'larger'"):
        Facts(says="", better="larger")


def test_measures_are_in_the_order_of_a_table() -> None:
    assert MEASURES["kl_complexity"] == "K(η)" and MEASURES["score_per_parameter"] == "  Ψ/m"
    assert list(MEASURES)[-3:] == ["loss", "test_loss", "gap"]
    assert Measures.facts()["score"] is PACGenResult.facts()["score"]


def test_metrics_have_all_facts_and_one_key_each() -> None:
    metrics = [facts for facts in PACGenResult.facts().values() if facts.key]
    assert len({facts.key for facts in metrics}) == len(metrics) == 10
    assert all(facts.label and facts.title and facts.span and facts.says for facts in metrics)
    assert [facts.key for facts in metrics if facts.legacy] == ["pacgen_active_fraction", "pacgen_kl_active_fraction"]


def test_a_metric_that_is_unknown_is_left_out() -> None:
    known, unknown = sample_result().metrics(), sample_result(kl_excess=None).metrics()
    assert unknown == {key: value for key, value in known.items() if key != "pacgen_kl_excess"} != known


def test_every_result_is_on_the_page_of_the_api() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for module in pkgutil.iter_modules(hf_pacgen.results.__path__):
        importlib.import_module(f"hf_pacgen.results.{module.name}")
    names = {kind.__name__ for kind in Result.__subclasses__() if kind.__module__.startswith("hf_pacgen.")}
    assert len(names) >= 9 and [name for name in names if f".{name}\n" not in page] == []


def test_results_are_read_without_the_libraries_that_show_them() -> None:
    """Neither torch nor what tables, pictures and cards need."""
    modules = [path.stem for path in (ROOT / "hf_pacgen" / "results").glob("*.py") if path.stem != "__init__"]
    # the package itself imports torch, so a bare package of its name stands in
    code = (
        "import sys, types\n"
        f"package = types.ModuleType('hf_pacgen'); package.__path__ = [{str(Path(hf_pacgen.__file__).parent)!r}]\n"
        "sys.modules['hf_pacgen'] = package\n"
        f"import {', '.join(f'hf_pacgen.results.{name}' for name in modules)}\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    heavy = "torch datasets evaluate matplotlib rich jinja2 huggingface_hub transformers numpy".split()
    assert set(done.stdout.split()) & set(heavy) == set()
