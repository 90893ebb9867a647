"""What a score says in words: numbers as people read them, and a sentence for every limit, at its threshold."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from sample_results import sample_result

from hf_pacgen.config import Estimator
from hf_pacgen.maths.score import ScoreTerms, pacgen_score
from hf_pacgen.maths.score_errors import DiagonalSample
from hf_pacgen.results.diagonal import DiagonalEstimate
from hf_pacgen.results.lipschitz import LipschitzEstimate
from hf_pacgen.show.wording import (
    composition,
    findings,
    further_metrics,
    number,
    parts,
    percent,
    spread,
    with_error,
)

# of which nothing is nearly all
TERMS = ScoreTerms(
    score=1.0,
    kl_complexity=100.0,
    kl_weights=20.0,
    kl_hessian=40.0,
    kl_lipschitz=40.0,
    num_active=500,
    num_kl_active=500,
    num_parameters=1000,
)
DIAGONAL = DiagonalEstimate(
    values={"w": torch.ones(1)},
    trace=10.0,
    trace_stderr=1.0,
    loss=0.5,
    num_units=8.0,
    num_examples=8,
    estimator=Estimator.HUTCHINSON,
)
SAMPLE = DiagonalSample({}, {}, [], biased=True)
RHO = LipschitzEstimate(value=2.0, iterations=(3, 5), batches=1, converged=True)


def said(
    terms: dict[str, Any] | None = None, diagonal: dict[str, Any] | None = None, rho: dict[str, Any] | None = None
) -> list[str]:
    """The sentences on numbers that nothing but for what is changed."""
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
    assert list(findings(TERMS, DIAGONAL, None, 1.0)) == []  # ρ was given


def made_of(weights: float, hessian: float, lipschitz: float, active: int = 500) -> list[str]:
    """What is said of K(η) with these parts."""
    terms = ScoreTerms(
        kl_complexity=weights + hessian + lipschitz,
        kl_weights=weights,
        kl_hessian=hessian,
        kl_lipschitz=lipschitz,
        num_active=active,
        num_parameters=1000,
    )
    assert [*composition(terms, 1234.0)] == said(vars(terms))
    return list(composition(terms, 1234.0))


SATURATED = (
    "K(η) at η = 1234 is saturated: {} of it is the size of the weights, and curvature hardly matters. Read "
    "kl_curvature, in which only the curvature counts."
)
RULED = (
    "ρ rules K(η): of what K(η) has beyond the size of the weights, {} is added by ρ and {} is the Hessian alone. Read "
    "kl_curvature for the Hessian."
)
PSI = "Ψ is saturated: it is a function of the weights' size alone."


def test_a_complexity_of_which_less_than_one_percent_is_beyond_size_is_saturated() -> None:
    assert made_of(99.0, 0.5, 0.5) == []  # 1 % is not below
    assert made_of(99.01, 0.5, 0.49) == [SATURATED.format("99.0 %")]
    assert made_of(1e6, 1.0, 1.0) == [SATURATED.format("> 99.9 %")]
    # the one thing to do about K(η) is said once: nothing of ρ and of Ψ, which saturates first
    assert made_of(100.0, 0.0, 0.001, active=0) == [SATURATED.format("> 99.9 %")]
    assert made_of(100.0, 0.0, 0.0) == made_of(0.0, 0.0, 0.0) == [SATURATED.format("100.0 %")]


def test_rho_rules_from_nine_tenths_of_what_is_beyond_size() -> None:
    assert made_of(20.0, 8.01, 71.99) == []
    assert made_of(20.0, 8.0, 72.0) == [RULED.format("90.0 %", "10.0 %")]
    assert made_of(0.0, 0.0, 5.0) == [RULED.format("100.0 %", "0.0 %")]
    assert made_of(20.0, 8.0, 72.0, active=9) == [RULED.format("90.0 %", "10.0 %"), PSI]
    assert made_of(20.0, 72.0, 8.0) == []  # the Hessian rules: that is what one came for


def test_psi_is_saturated_below_one_percent_of_the_weights() -> None:
    assert made_of(20.0, 40.0, 40.0, active=10) == []
    assert made_of(20.0, 40.0, 40.0, active=9) == [f"{PSI} Read K(η), which has η in it."]


def test_what_is_said_of_real_weights_is_so() -> None:
    weights, curvature = torch.full((50,), 2.0), torch.full((50,), 0.005)
    ruled = pacgen_score(weights, curvature, 1e6, eta=1000.0)
    quiet = pacgen_score(weights, curvature, 0.0, eta=1.0)
    sharp = pacgen_score(weights, 1e6 * curvature, 0.0, eta=1000.0)
    assert [text.partition(":")[0] for text in composition(ruled, 1000.0)] == ["ρ rules K(η)"]
    # another Hessian leaves such a K(η) as it is, and moves kl_curvature
    other = pacgen_score(weights, 2 * curvature, 1e6, eta=1000.0)
    assert other.kl_complexity == pytest.approx(ruled.kl_complexity, rel=1e-4)
    assert other.kl_curvature > 1.05 * ruled.kl_curvature
    assert [text.partition(":")[0] for text in composition(quiet, 1.0)] == ["K(η) at η = 1 is saturated"]
    assert list(composition(sharp, 1000.0)) == []


def test_a_trace_is_noisy_beyond_half_of_itself() -> None:
    assert said(diagonal={"trace_stderr": 5.0}) == said(diagonal={"trace": -10.0, "trace_stderr": 5.0}) == []
    assert said(diagonal={"trace": -10.0, "trace_stderr": 5.01}) == [
        "The Hessian's trace is noisy: -10 ± 5. Use more passes or more data."
    ]
    (unknown,) = said(diagonal={"trace_stderr": None})
    assert unknown.startswith("The standard error of the trace is unknown: one batch in one pass shows no spread.")
    # where nobody can know how far it is off, the estimator's own note says so
    assert said(diagonal={"trace_stderr": None, "sample": SAMPLE, "notes": ("Biased.",)}) == ["Biased."]


def test_rho_is_spoken_of_where_it_did_not_converge() -> None:
    assert said(rho={"converged": False}) == [
        "ρ did not converge in 5 iterations, and is a lower estimate. Use more lipschitz_iterations."
    ]


def test_the_notes_of_the_diagonal_come_between_saturation_and_noise() -> None:
    texts = said({"num_active": 0}, {"notes": ("A note.",), "trace_stderr": None}, {"converged": False})
    assert texts[1] == "A note." and texts[0].startswith("Ψ") and texts[2].startswith("The standard error")
    assert texts[3].startswith("ρ did not converge") and len(texts) == 4


def test_the_limits_of_a_result_are_what_it_says() -> None:
    result = sample_result(status=("One.", "Two."), active_fraction=0.0)
    assert result.notes == ("One.", "Two.") and sample_result(status=()).notes == ()


def test_what_a_complexity_is_made_of_in_a_line() -> None:
    assert parts(sample_result()) == "50.0 % size of the weights, 10.0 % the Hessian alone, 40.0 % added by ρ"
    tiny = {"weights": 1e6, "hessian": 1.0, "lipschitz": -1e-12}
    assert parts(sample_result(kl_parts=tiny)) == (
        "> 99.9 % size of the weights, < 0.1 % the Hessian alone, 0.0 % added by ρ"
    )
    # in results of release 0.1 it is unknown, and of nothing there are no parts
    assert parts(sample_result(kl_parts={})) == parts(sample_result(kl_parts=dict.fromkeys(tiny, 0.0))) == ""


def test_a_value_has_its_error_beside_it() -> None:
    result = sample_result()
    assert with_error(result, "kl_complexity") == "240 ± 12" and with_error(result, "kl_curvature") == "12 ± 1"
    # m = 100 is known exactly
    assert with_error(result, "kl_complexity_per_parameter") == "2.4 ± 0.12"
    assert with_error(result, "score_per_parameter") == "0.6 ± 0.015"
    for unknown in (None, 0.0):
        assert with_error(sample_result(hessian_trace_stderr=unknown), "hessian_trace") == "4.5"
    assert with_error(result, "num_parameters") == "100" and with_error(result, "active_fraction") == "25.0 %"


def test_fields_kept_for_old_readers_have_no_row() -> None:
    assert list(further_metrics(sample_result())) == []
    assert {"pacgen_active_fraction", "pacgen_kl_active_fraction"} < sample_result().metrics().keys()
