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

MODULE = {
    "score": 2.0,
    "kl_complexity": 8.0,
    "kl_weights": 2.0,
    "kl_hessian": 0.0,
    "kl_lipschitz": 6.0,
    "kl_curvature": 1.0,
    "hessian_trace": 1.5,
    "num_parameters": 2,
}
RESULT = PACGenResult(
    score=3.0,
    score_per_parameter=1.0,
    kl_complexity=10.0,
    kl_complexity_per_parameter=10 / 3,
    kl_complexity_stderr=0.3,
    kl_parts={"weights": 2.1, "hessian": 0.001, "lipschitz": 7.899},
    kl_excess=7.9,
    kl_excess_stderr=0.3,
    kl_curvature=0.125,
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
    hessian_lipschitz_stderr=0.25,
    hessian_lipschitz_max=3.0,
    by_module={
        "small": {**MODULE, "kl_complexity": 2.0, "kl_weights": 2.0, "kl_lipschitz": 0.0, "num_parameters": 1},
        "large[0]": MODULE,
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
    return " ".join(stream.getvalue().replace("│", " ").replace("┃", " ").split())


def test_report_shows_everything() -> None:
    text = printed(RESULT)
    for phrase in (
        "A [b] model",  # markup of rich is not taken for such
        "η = 1,234",
        "K(η) 10 ± 0.3 complexity in the PAC-Bayes bound at η = 1,234, in nats; lower is better",
        "K(η)/m 3.333 ± 0.1 the same per parameter",
        "made of 21.0 % size of the weights, < 0.1 % the Hessian alone, 79.0 % added by ρ",
        "K(η) beyond size 7.9 ± 0.3 K(η) less its part from the size of the weights",
        "K(η) of curvature 0.125 ½ Σ log(1 + η max(H_ii, 0) (γ w_i)²/3), curvature alone",
        "1,234 ± 120 Σ H_ii, how sharp the minimum is",
        "ρ 0.5 ± 0.25 how fast the Hessian of a batch changes nearby: the median over displacements in the box",
        "12 training examples scored, with 57 labeled tokens as the units of the loss",
        "2.2 min",
        "gauss-newton estimate of the Hessian diagonal: 2,000 gradients and 1 Hessian-vector product of a batch",
        "Module m K(η) share K(η)/m Hessian ρ trace",
        "large[0] 2 8 80.0 % 4 0.0 % 75.0 % 1.5",
        "What limits these numbers: • Ψ is saturated.",
    ):
        assert phrase in text
    assert text.index("large[0]") < text.index("small") and "active" not in text


def test_report_gives_one_consistent_next_step() -> None:
    notes = ("Saturated. Raise eta or epsilon.", "ρ outweighs it. More passes help; a smaller epsilon does too.")
    text = printed(dataclasses.replace(RESULT, status=notes))
    assert (
        "• Saturated. Raise eta or epsilon. • ρ outweighs it. More passes help." in text
        and "a smaller epsilon" not in text
    )


def test_report_leaves_out_what_there_is_not() -> None:
    errors: dict[str, Any] = dict.fromkeys((name for name in vars(RESULT) if name.endswith("_stderr")), None)
    bare = dataclasses.replace(RESULT, status=(), num_units=12.0, num_hvps=0, num_gradients=0, **errors)
    text = printed(bare, top_modules=0)
    for phrase in ("What limits", "±", "Modules", "loss units", "tokens", "Hessian-vector"):
        assert phrase not in text


def test_a_result_of_release_0_1_has_no_zeros_for_what_it_did_not_measure() -> None:
    parts = {"kl_weights", "kl_hessian", "kl_lipschitz", "kl_curvature"}
    modules = {name: {k: v for k, v in numbers.items() if k not in parts} for name, numbers in RESULT.by_module.items()}
    unknown: dict[str, Any] = dict.fromkeys(["kl_excess", "kl_excess_stderr", "kl_curvature"], None)
    text = printed(dataclasses.replace(RESULT, kl_parts={}, by_module=modules, **unknown))
    for phrase in ("made of", "beyond size", "of curvature", "None"):
        assert phrase not in text
    assert "large[0] 2 8 80.0 % 4 1.5" in text


def test_the_guide_names_fields_metrics_and_rows() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "score.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.+) \|$", page, flags=re.MULTILINE)
    facts = RESULT.facts()
    assert sorted(rows) == sorted(
        (name, fact.key, fact.label) for name, fact in facts.items() if fact.key and not fact.legacy
    )
    assert all(f"`{fact.key}`" in page for fact in facts.values() if fact.legacy)
    values: dict[str, Any] = {name: float(i) for i, name in enumerate(facts)}
    numbered = {name: values[name] for name, _, _ in rows}
    metrics = dataclasses.replace(RESULT, **numbered).metrics()
    assert {key: numbered[name] for name, key, _ in rows} == {key: metrics[key] for _, key, _ in rows}
    shown = printed(RESULT)
    assert all(row in shown for _, _, row in rows)
