"""± of a score holds: it has the exact value in it as often as it says, also where Gauss-Newton misses most."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "benchmarks"))

import coverage_of_errors as coverage

from hf_pacgen import ScoreConfig, pacgen


@pytest.mark.parametrize("name", ["lenet", "residual"])
def test_intervals_have_the_exact_value_in_them(name: str) -> None:
    subject = coverage.SUBJECTS[name]()
    exact, _ = coverage.reference(subject, 16, coverage.BATCH)
    found = coverage.covered(subject, exact, 12)
    for value, row in found.items():
        assert row["intervals"] == 12, value
        assert row["covered"] >= 9 / 12, (value, row)
    # and they are not as wide as to say nothing
    assert found["kl_complexity"]["stderr"] < 0.5


def test_the_residual_case_is_one() -> None:
    subject = coverage.residual()
    rows = coverage.Rows(subject.examples)
    exact, part = (
        pacgen(
            subject.model,
            rows,
            config=ScoreConfig(estimator=name, lipschitz_directions=0, rho=1.0, passes=passes),
            batch_size=32,
            progress=False,
        )
        for name, passes in (("exact", 1), ("gauss_newton", 10))
    )
    assert exact.hessian_trace > 5 * part.hessian_trace > 0
