"""What a promise says: errors rounded up, probabilities down, and what would break it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_pacgen.errors import InputError
from hf_pacgen.results.promise import Promise, confidence, rounded_down

FIELDS: dict[str, Any] = {
    "error_bound": 0.13601,
    "mean_loss": 0.124,
    "num_errors": 62,
    "num_examples": 500,
    "delta": 0.05,
    "share": 0.05,
    "method": "exact binomial bound, Clopper-Pearson",
}


def made(**changes: Any) -> Promise:
    return Promise(**FIELDS | changes)


def test_the_whole_statement() -> None:
    origin = {"model": {"name": "./my-model", "weights": "0123456789abcdef"}, "data": {"name": ["test.csv"]}}
    assert made(origin=origin).statement == (
        "With probability ≥ 95 % over the draw of the 500 held-out examples of test.csv, the model ./my-model (weights "
        "01234567) errs on at most 13.7 % of new examples. It made 62 errors on them (exact binomial bound, "
        "Clopper-Pearson). It does not hold if these examples trained or chose the model, if they depend on each "
        "other, or if the new ones come from another distribution."
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"loss": "token_error", "unit": "sequence", "num_errors": None},
            "errs on at most 13.7 % of the labels of",
        ),
        ({"loss": "exact_match", "unit": "sequence"}, "gets at most 13.7 % of new sequences not wholly right"),
        (
            {"loss": "brier", "num_errors": None},
            "has a mean halved Brier score of at most 13.7 % on new examples. Its",
        ),
        ({"loss": "f1"}, "has a mean 1 - F1 of at most 13.7 % on new examples"),
        ({"loss": "error_fn"}, "has a mean error (by its own error function) of at most 13.7 % on new examples"),
        ({"loss": "of a later release"}, "has a mean error (by its own error function) of at most"),
        ({"error_bound": 1.0}, "is promised nothing about its error on new examples"),
        ({"delta": 0.0123}, "With probability ≥ 98.77 % over"),
        ({"num_candidates": 4}, "Clopper-Pearson; 4 candidates are paid for)"),
        (
            {"rule": "abstain", "threshold": 0.9, "target": 0.05, "coverage_bound": 0.5239},
            "with confidence ≥ 0.9 answers at least 52.3 % of new examples, and errs on at most 5 % of those, and errs "
            "on at most 13.7 % of new examples if it answers all",
        ),
        (
            {"rule": "abstain", "target": 0.05},
            "has no confidence from which on at most 5 % of its answers would be wrong",
        ),
        (
            {"rule": "sets", "threshold": 0.02, "target": 0.95, "set_size": 1.456},
            "gives sets of the classes of probability ≥ 0.02 (on average 1.46) that hold the label of at least 95 % of "
            "new examples, and errs on at most 13.7 % of new examples by its likeliest class",
        ),
    ],
)
def test_it_says_what_is_promised(changes: dict[str, Any], says: str) -> None:
    assert says in made(**changes).statement


def test_rounding_never_promises_more() -> None:
    assert confidence(0.05) == "95 %" and confidence(0.04999) == "95 %" and confidence(0.05001) == "94.99 %"
    assert rounded_down(0.5) == "50 %" and rounded_down(0.49999) == "49.9 %"


def test_it_is_written_and_read(tmp_path: Path) -> None:
    promise = made(rule="sets", threshold=0.5, target=0.9, curve={"0.05": {"threshold": 0.9}}, notes=("a note",))
    promise.save(tmp_path / "promise.json")
    assert Promise.load(tmp_path / "promise.json") == promise
    assert promise.to_dict()["statement"] == promise.statement
    assert "bound" in repr(promise) and "a note" in repr(promise)
    with pytest.raises(InputError, match=r"rule must be 'abstain', 'sets' or null; got 'guess'. Promise again"):
        Promise.from_dict({**promise.to_dict(), "rule": "guess"})
