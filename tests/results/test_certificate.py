"""What a certificate says, rounded to the safe side, and what passes for one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hf_pacgen.errors import InputError
from hf_pacgen.results.certificate import NUMBERS, Certificate, certificate_fields, rounded_up, sentence
from hf_pacgen.show.cards.update import certificate_section

FIELDS: dict[str, Any] = {
    "bound": 0.2171,
    "status": "certified",
    "empirical_error": 0.1,
    "empirical_bound": 0.12,
    "kl": 300.0,
    "n": 12_000,
    "delta": 0.05,
    "eta": 2000.0,
    "prior_scale": 0.1,
    "prior": "zero",
    "draws": 100.0,
    "num_parameters": 10,
}


def certificate(**changes: Any) -> Certificate:
    return Certificate(**FIELDS | changes)


def test_a_certificate_says_what_is_proved() -> None:
    assert certificate().sentence == (
        "With probability ≥ 95 % over the draw of the 12,000 training examples, the noisy classifier errs on at most "
        "21.8 % of new ones."
    )
    assert certificate(unit="document", n=7).sentence == (
        "With probability ≥ 95 % over the draw of the 7 training documents, the noisy model errs on at most 21.8 % of "
        "the labels of a new one, on average over documents."
    )
    assert certificate(bound=1.0, status="vacuous").sentence == (
        "The certificate is vacuous: from 12,000 training examples at this KL, nothing is proved."
    )
    assert sentence(FIELDS | {"unit": None}) == certificate().sentence  # another program's, which names no unit


@pytest.mark.parametrize(
    ("bound", "text"), [(0.2171, "21.8 %"), (0.217, "21.7 %"), (0.0, "0 %"), (1e-6, "0.1 %"), (0.99999, "100 %")]
)
def test_an_error_is_rounded_up(bound: float, text: str) -> None:
    assert rounded_up(bound) == text


def test_no_bound_is_understated() -> None:
    for k in range(1001):
        assert float(rounded_up(k / 1000).removesuffix(" %")) == pytest.approx(k / 10)  # and none of these is raised
        assert float(rounded_up(k / 1000 + 3e-7).removesuffix(" %")) > k / 10


@pytest.mark.parametrize(
    ("delta", "text"), [(0.05, "95 %"), (0.0501, "94.99 %"), (0.050001, "94.99 %"), (1e-3, "99.9 %"), (1e-9, "99.99 %")]
)
def test_a_probability_is_rounded_down(delta: float, text: str) -> None:
    assert f"With probability ≥ {text} over" in certificate(delta=delta).sentence


def test_a_file_holds_the_sentence_and_the_fields(tmp_path: Path) -> None:
    made = certificate(by_module={"head": {"kl": 3.0}}, refinement={"steps": 2.0}, notes=("Taken for granted.",))
    made.save(tmp_path / "certificate.json")
    assert Certificate.load(tmp_path / "certificate.json") == made
    assert made.to_dict()["sentence"] == made.sentence and certificate_fields(made) == made.to_dict()


def test_certificates_of_other_programs_pass() -> None:
    @dataclass
    class Theirs:
        bound: float = 0.5
        empirical_error: float = 0.1
        kl: float = 3.0
        n: int = 10
        delta: float = 0.1
        status: str = "certified"

    expected = {"bound": 0.5, "empirical_error": 0.1, "kl": 3.0, "n": 10, "delta": 0.1, "status": "certified"}
    assert certificate_fields(Theirs()) == certificate_fields(expected) == expected
    given = dict(expected)
    certificate_fields(given)["bound"] = 0.0
    assert given == expected  # what is returned is a copy


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [None, "0.1", True, math.nan])
def test_a_number_that_is_missing_or_none_is_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"must have the numbers {', '.join(NUMBERS)}.*wrong or missing: {name}\."):
        certificate_fields(FIELDS | {name: value})


def test_what_is_no_certificate() -> None:
    with pytest.raises(InputError, match=r"wrong or missing: status\. Write it with Certificate\.to_dict\(\)"):
        certificate_fields(FIELDS | {"status": "sure"})
    for value in (7, "certified", [FIELDS]):
        kind = type(value).__name__
        with pytest.raises(InputError, match=rf"must be what certify\(\) returned, or its to_dict\(\); got {kind}\."):
            certificate_fields(value)


def test_the_test_set_bound_is_said_beside_it() -> None:
    beside: dict[str, Any] = {
        "test_set_bound": 0.0407,
        "test_set_errors": 27.0,
        "test_set_method": "exact (Clopper-Pearson)",
    }
    made = certificate(n=904, bound=0.095, held_out=True, test_set_of="model", **beside)
    assert made.sentence == (
        "With probability ≥ 95 % over the draw of the 904 held-out examples, the noisy classifier errs on at most "
        "9.5 % of new ones. Without noise it errs, with the same probability, on at most 4.1 % (the test-set "
        "bound: 27 errors on 904 examples that it never saw)."
    )
    assert made.comparison.startswith(
        "The test-set bound of the model without noise (4.1 %) is tighter than PAC-Bayes (9.5 %); PAC-Bayes is for the "
        "whole noisy posterior"
    )
    prior = certificate(n=904, bound=0.03, test_set_of="prior", **beside)
    assert (
        "904 training examples" in prior.sentence
        and "The prior's model, without noise, errs, with the same" in prior.sentence
    )
    assert prior.comparison.startswith("PAC-Bayes (3 %) is tighter than the test-set bound of the prior's model")
    vacuous = certificate(status="vacuous", bound=1.0, test_set_of="model", **beside)
    assert vacuous.sentence.endswith("(the test-set bound: 27 errors on 12,000 examples that it never saw).")
    # of another program, which may say what it likes
    assert "test-set" not in sentence(FIELDS | {"test_set_bound": 0.1, "test_set_errors": "27", "test_set_of": "us"})
    assert "| Test-set bound of the model without noise, at the same δ | 4.1 % |" in certificate_section(made)
    assert "| Held-out examples n | 904 |" in certificate_section(made) and made.comparison in certificate_section(made)
    old = {
        name: value for name, value in certificate().to_dict().items() if not name.startswith(("test_set", "held_out"))
    }
    assert Certificate.from_dict(old) == certificate() and certificate().comparison == ""
