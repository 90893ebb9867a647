"""What a score says in words: numbers as people read them, and a sentence for every limit, at its threshold."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from sample_results import sample_result

from hf_pacgen.config import Estimator
from hf_pacgen.maths.score import ScoreTerms
from hf_pacgen.results.diagonal import DiagonalEstimate
from hf_pacgen.results.lipschitz import LipschitzEstimate
from hf_pacgen.show.wording import findings, limits, number, percent, spread

TERMS = ScoreTerms(score=1.0, kl_complexity=2.0, num_active=500, num_kl_active=500, num_parameters=1000, smoothness=1.0)
DIAGONAL = DiagonalEstimate(
    values={"w": torch.ones(1)},
    trace=10.0,
    trace_stderr=1.0,
    loss=0.5,
    num_units=8.0,
    num_examples=8,
    estimator=Estimator.HUTCHINSON,
)
RHO = LipschitzEstimate(value=2.0, iterations=(3, 5), batches=1, converged=True)


def said(
    terms: dict[str, Any] | None = None, diagonal: dict[str, Any] | None = None, rho: dict[str, Any] | None = None
) -> list[str]:
    """The sentences on numbers that nothing limits, but for what is changed."""
    return list(
        findings(
            dataclasses.replace(TERMS, **terms or {}),
            dataclasses.replace(DIAGONAL, **diagonal or {}),
            dataclasses.replace(RHO, **rho or {}),
            1234.0,
        )
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.00123456, "0.001235"),
        (12.3456, "12.35"),
        (999.96, "1000"),
        (1234567.8, "1,234,568"),
        (-2e3, "-2,000"),
        (1.2e-07, "1.2e-07"),
        (2e15, "2e+15"),
        (float("inf"), "inf"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0.0 %"), (1e-5, "< 0.1 %"), (0.1234, "12.3 %"), (0.99999, "> 99.9 %"), (1.0, "100.0 %")]
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("stderr", "text"), [(None, ""), (0.0, ""), (0.25, " ± 0.25"), (0.123456, " ± 0.12"), (12345.0, " ± 12,000")]
)
def test_the_spread_has_two_digits(stderr: float | None, text: str) -> None:
    assert spread(stderr) == text


def test_nothing_is_said_where_nothing_limits() -> None:
    assert said() == []
    assert list(findings(dataclasses.replace(TERMS, smoothness=1e9), DIAGONAL, None, 1.0)) == []  # ρ was given


def test_a_share_below_one_percent_is_saturated() -> None:
    assert said({"num_active": 10, "num_kl_active": 10}) == []  # 1 % is not below
    assert said({"num_active": 9}) == [
        "Ψ is saturated: curvature matters for 0.9% of the weights, so Ψ is a function of the weights' size alone. "
        "Judge by K(η) at η = 1234, where it matters for 50.0%."
    ]
    assert said({"num_kl_active": 9}) == [
        "K(η) is saturated: curvature matters for 0.9% of the weights. Raise eta, gamma or epsilon to see the "
        "curvature."
    ]
    both = said({"num_active": 0, "num_kl_active": 0})
    assert both[0].endswith("size alone.") and both[1].startswith("K(η) is saturated too: ") and len(both) == 2


def test_a_trace_is_noisy_beyond_half_of_itself() -> None:
    assert said(diagonal={"trace_stderr": 5.0}) == said(diagonal={"trace": -10.0, "trace_stderr": 5.0}) == []
    assert said(diagonal={"trace": -10.0, "trace_stderr": 5.01}) == [
        "The Hessian diagonal is noisy: its trace is -10 ± 5. Use more passes or more data."
    ]
    (unknown,) = said(diagonal={"trace_stderr": None})
    assert unknown.startswith("The standard error of the trace is unknown: one batch in one pass shows no spread.")


def test_rho_is_spoken_of_beyond_ten_traces_and_where_it_did_not_converge() -> None:
    assert said({"smoothness": 100.0}) == []
    (one,) = said({"smoothness": 101.0})
    assert one.startswith("ρ outweighs the curvature: its term Σ ρ√m N_i is 101, the Hessian's trace 10, so Ψ and K(η)")
    assert "estimated on 1 batch. " in one
    (three,) = said({"smoothness": 101.0}, rho={"batches": 3})
    assert "estimated on 3 batches. " in three
    assert said(rho={"converged": False}) == [
        "ρ did not converge in 5 iterations, and is a lower estimate. Use more lipschitz_iterations."
    ]


def test_the_notes_of_the_diagonal_come_between_saturation_and_noise() -> None:
    texts = said({"num_active": 0}, {"notes": ("A note.",), "trace_stderr": None}, {"converged": False})
    assert texts[1] == "A note." and texts[0].startswith("Ψ") and texts[2].startswith("The standard error")
    assert texts[3].startswith("ρ did not converge") and len(texts) == 4


def test_the_limits_of_a_result_name_a_saturation_that_it_does_not_name_itself() -> None:
    own = sample_result()
    assert limits(own) == list(own.status)
    low = sample_result(active_fraction=0.001)
    advised = "Ψ is saturated: curvature matters for 0.1 % of the weights. Judge by K(η)."
    assert limits(low) == [advised, *low.status]
    both = sample_result(active_fraction=0.0001, kl_active_fraction=0.001, status=())
    assert limits(both) == ["Ψ is saturated: curvature matters for < 0.1 % of the weights. So is K(η)."]
    told = sample_result(active_fraction=0.001, status=("Ψ is saturated: as said.",))
    assert limits(told) == ["Ψ is saturated: as said."]
