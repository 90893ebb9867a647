"""The printed report, and the guide that explains its rows."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

from rich.console import Console

from hf_pacgen import PACGenResult
from hf_pacgen.show.tables import print_report

MODULE = {"score": 2.0, "kl_complexity": 8.0, "hessian_trace": 1.5, "num_parameters": 2, "active_fraction": 0.0}
RESULT = PACGenResult(
    score=3.0,
    score_per_parameter=1.0,
    kl_complexity=10.0,
    kl_complexity_per_parameter=10 / 3,
    eta=1234.0,
    active_fraction=0.0,
    kl_active_fraction=0.9999,
    num_parameters=3,
    num_examples=12,
    num_units=57.0,
    loss=0.25,
    hessian_trace=1234.5,
    hessian_trace_stderr=123.4,
    hessian_lipschitz=0.5,
    by_module={
        "small": {**MODULE, "kl_complexity": 2.0, "num_parameters": 1, "kl_active_fraction": 1.0},
        "large[0]": {**MODULE, "kl_active_fraction": 1.0},
    },
    estimator="gauss_newton",
    hvp_method="finite_difference",
    num_hvps=1,
    num_gradients=2000,
    seconds=130.0,
    status=("Ψ is saturated.",),
    config={},
)


def printed(result: PACGenResult, **settings: int) -> str:
    stream = io.StringIO()
    print_report(result, title="A [b] model", console=Console(file=stream, width=120), **settings)
    return " ".join(stream.getvalue().replace("│", " ").split())


def test_report_shows_everything() -> None:
    text = printed(RESULT)
    for phrase in (
        "A [b] model",  # markup of rich is not taken for such
        "η = 1,234",
        "0.0 % share of the weights for which curvature matters in Ψ",
        "> 99.9 %",
        "1,234 ± 120 Σ H_ii, how sharp the minimum is (± its noise, not its bias)",
        "12 training examples scored, with 57 labeled tokens as the units of the loss",
        "2.2 min",
        "gauss-newton estimate of the Hessian diagonal: 2,000 gradients and 1 Hessian-vector product of a batch",
        "large[0] 2 8 80.0 %",
        "What limits these numbers: • Ψ is saturated.",
    ):
        assert phrase in text
    assert text.index("large[0]") < text.index("small")


def test_report_gives_one_consistent_next_step() -> None:
    notes = ("Saturated. Raise eta or epsilon.", "ρ outweighs it. More passes help; a smaller epsilon does too.")
    text = printed(dataclasses.replace(RESULT, status=notes))
    assert (
        "• Saturated. Raise eta or epsilon. • ρ outweighs it. More passes help." in text
        and "a smaller epsilon" not in text
    )


def test_report_leaves_out_what_there_is_not() -> None:
    bare = dataclasses.replace(
        RESULT, status=(), hessian_trace_stderr=None, num_units=12.0, num_hvps=0, num_gradients=0
    )
    text = printed(bare, top_modules=0)
    for phrase in ("What limits", "±", "Modules", "loss units", "tokens", "Hessian-vector"):
        assert phrase not in text


def test_the_guide_names_fields_metrics_and_rows() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "score.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.+) \|$", page, flags=re.MULTILINE)
    facts = RESULT.facts()
    assert sorted(rows) == sorted((name, fact.key, fact.label) for name, fact in facts.items() if fact.key)
    values: dict[str, Any] = {name: float(i) for i, name in enumerate(facts)}
    numbered = {name: values[name] for name, _, _ in rows}
    assert {key: numbered[name] for name, key, _ in rows} == dataclasses.replace(RESULT, **numbered).metrics()
    shown = printed(RESULT)
    assert all(row in shown for _, _, row in rows)
