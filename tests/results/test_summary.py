"""A result is shown in about ten lines."""

from __future__ import annotations

import torch
from sample_results import sample_result, sample_spectrum

from hf_pacgen.results.base import Result
from hf_pacgen.results.diagonal import DiagonalEstimate
from hf_pacgen.results.summary import rows


def kinds(kind: type[Result] = Result) -> set[type[Result]]:
    found = {k for k in kind.__subclasses__() if k.__module__.startswith("hf_pacgen.results")}
    return found.union(*map(kinds, found))


def test_a_score_in_a_dozen_lines() -> None:
    origin = {"model": {"name": "./model"}, "data": {"name": ["train.csv"]}}
    result = sample_result(status=("ρ did not converge.", "second"), origin=origin)
    shown = repr(result)
    assert str(result) == shown and shown.count("\n") <= 11 and max(map(len, shown.splitlines())) <= 100
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0] == "PACGenResult of ./model on train.csv"
    assert lines[1:3] == ["Ψ 60 ± 1.5 nats", "K(η) 240 ± 12 nats"]
    assert lines[-1] == "! ρ did not converge. (and 1 more in .notes)"
    page = result._repr_html_()
    assert page.count("<tr>") == len(rows(result)) == 10 and "K(η)" in page and "<p>! ρ did not" in page
    assert "<b>" not in sample_result(status=("<b>",))._repr_html_()  # files of others are no markup


def test_others_too() -> None:
    assert "eigenvalues 8, 4" in " ".join(repr(sample_spectrum()).split())
    values = {"w": torch.zeros(10_000)}
    from hf_pacgen.config import Estimator

    shown = repr(
        DiagonalEstimate(
            values=values,
            trace=1.0,
            loss=0.5,
            num_units=3.0,
            num_examples=3,
            estimator=Estimator.BLEND,
        )
    )
    assert "Hessian trace" in shown and "tensor(" not in shown and "blend" in shown


def test_every_kind_has_it() -> None:
    assert len(kinds()) >= 9 and all(kind.__repr__ is Result.__repr__ for kind in kinds())
