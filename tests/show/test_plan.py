"""A plan as tables."""

from __future__ import annotations

import io

from rich.console import Console

from hf_pacgen.results.plan import Plan
from hf_pacgen.show.plan import amount, duration, print_plan


def test_all_figures_and_refusals_are_shown() -> None:
    known = {"peak_bytes": 5_900_000_000, "peak_in": "checks", "wire_bytes": 1_500, "seconds": 75.0}
    plan = Plan(
        num_parameters=1_000_000,
        num_all_parameters=3_000_000,
        trainable_bytes=4_000_000,
        parameter_bytes=12_000_000,
        num_batches=100,
        num_examples=800,
        estimator="blend",
        hvp_method="finite_difference",
        num_hvps=116,
        passes={"checks": {"forwards": 10, "backwards": 4}, "repeats": {"forwards": 0, "backwards": 0}},
        forwards=350,
        backwards=344,
        flops=1.5e15,
        layouts=(
            {"processes": 1, "weights": "copied", **known},
            {"processes": 2, "weights": "copied", **known, "peak_bytes": None, "peak_in": None, "seconds": None},
            {"processes": 2, "weights": "sharded", "refused": "It is in bfloat16."},
        ),
        status=("A sentence.",),
    )
    out = io.StringIO()
    print_plan(plan, title="Of [a model]", console=Console(file=out, width=110))
    text = " ".join(out.getvalue().split())
    for part in (
        "Of [a model]",
        "5.9 GB",
        "1.5 kB",
        "75 s",
        "not known",
        "refused",
        "It is in bfloat16.",
        "A sentence.",
    ):
        assert part in text
    assert "2,000,000 frozen" in text and "passes of repeats" not in text and "1.5e+15" in text


def test_amounts_and_durations() -> None:
    assert [amount(n) for n in (0, 999, 1000, 999_600, 123_456_789, 8e18)] == [
        *("0 B", "999 B", "1.0 kB", "1.0 MB", "123 MB", "8000 PB")
    ]
    assert [duration(s) for s in (0.25, 99, 130, 5999, 9000)] == ["0.2 s", "99 s", "2.2 min", "100.0 min", "2.5 h"]
