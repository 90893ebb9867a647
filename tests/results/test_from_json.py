"""Results of release 0.1 and of other releases: what is missing, what is unknown, what is of the wrong type."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_pacgen.config import Estimator
from hf_pacgen.errors import InputError
from hf_pacgen.results.base import Result
from hf_pacgen.results.certificate import Certificate
from hf_pacgen.results.diagonal import DiagonalEstimate
from hf_pacgen.results.landscape import LossSlice
from hf_pacgen.results.lipschitz import LipschitzEstimate
from hf_pacgen.results.measures import Measures
from hf_pacgen.results.pacgen import PACGenResult
from hf_pacgen.results.sharpness import Sharpness
from hf_pacgen.results.spectrum import Spectrum
from hf_pacgen.results.worst_case import WorstCaseSharpness
from hf_pacgen.show.cards.update import card_section, certificate_section

FIXTURES = Path(__file__).parent / "fixtures"


def saved(name: str) -> Any:
    return json.loads((FIXTURES / f"{name}-0.1.json").read_text(encoding="utf-8"))


SHARPNESS, COMPARED = saved("sharpness"), saved("compare")["runs"]
OLD: list[tuple[type[Result], dict[str, Any]]] = [
    (PACGenResult, saved("pacgen")),
    (Certificate, saved("certificate")),
    (Sharpness, SHARPNESS["expected"]),
    (WorstCaseSharpness, SHARPNESS["worst_case"]),
    (Spectrum, SHARPNESS["spectrum"]),
    *[(Measures, run) for run in COMPARED],
]
KINDS = pytest.mark.parametrize(("kind", "values"), OLD, ids=[kind.__name__ for kind, _ in OLD])


@pytest.fixture(autouse=True)
def no_other_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@KINDS
def test_what_release_0_1_wrote_is_read(kind: type[Result], values: dict[str, Any], tmp_path: Path) -> None:
    result = kind.from_dict(values)
    written = result.to_dict()
    assert {name: written[name] for name in values} == values
    # what later releases added has nothing to say of it
    assert not any(written[name] for name in set(written) - set(values) - {"version"})
    assert kind.from_dict(written) == result
    result.save(tmp_path / "again.json")
    assert kind.load(tmp_path / "again.json") == result
    assert result.notes == tuple(values["notes"] if kind is Certificate else values["status"])


def test_cards_are_written_from_old_files() -> None:
    result = PACGenResult.load(FIXTURES / "pacgen-0.1.json")
    assert result.num_examples == 40 and "Ψ, the published score" in card_section(result)
    # modules have active fractions there, and nothing has parts: they are unknown, not 0
    assert all("active_fraction" in numbers and "kl_hessian" not in numbers for numbers in result.by_module.values())
    assert result.kl_parts == {} and result.kl_excess is result.kl_curvature is result.kl_complexity_stderr is None
    assert result.metrics().keys() == {facts.key for facts in result.facts().values() if facts.key} - {
        "pacgen_kl_excess",
        "pacgen_kl_curvature",
    }
    certificate = Certificate.load(FIXTURES / "certificate-0.1.json")
    assert certificate.sentence in certificate_section(saved("certificate"))


@KINDS
def test_unknown_fields_are_left_out_with_one_warning(kind: type[Result], values: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="does not know, and leaves out: entropy, weather. A newer release") as told:
        result = kind.from_dict({**values, "weather": "fine", "entropy": 1.5})
    assert len(told) == 1 and result == kind.from_dict(values)


@KINDS
def test_missing_fields_get_their_defaults_and_others_are_refused(kind: type[Result], values: dict[str, Any]) -> None:
    fields = [field for field in dataclasses.fields(kind) if field.name in values]  # type: ignore[arg-type]
    assert {field.name for field in fields if field.name in ("seconds", "status", "config", "notes")}
    for field in fields:
        rest = {name: value for name, value in values.items() if name != field.name}
        default = field.default_factory() if callable(field.default_factory) else field.default
        if default is dataclasses.MISSING:
            with pytest.raises(InputError, match=rf"does not have the expected fields: missing \['{field.name}'\]"):
                kind.from_dict(rest)
        else:
            assert getattr(kind.from_dict(rest), field.name) == default


@KINDS
def test_another_format_is_refused(kind: type[Result], values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"has version 2; this release reads version 1\. .* again, or install"):
        kind.from_dict({**values, "version": 2})
    for nothing in ([1], "text", None):
        with pytest.raises(InputError, match=rf"This is no {kind.kind} of hf_pacgen: expected a JSON object"):
            kind.from_dict(nothing)  # type: ignore[arg-type]
    if not kind.unversioned:
        with pytest.raises(InputError, match="expected a JSON object with a 'version'"):
            kind.from_dict({name: value for name, value in values.items() if name != "version"})


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            PACGenResult,
            {"score": True},
            "'score' must be of type float; got True. Write the file with PACGenResult.save",
        ),
        (PACGenResult, {"num_hvps": True}, "'num_hvps' must be of type int; got True"),
        (PACGenResult, {"score": math.nan}, "'score' must be of type float; got nan"),
        (PACGenResult, {"score": -math.inf}, "'score' must be of type float; got -inf"),
        (PACGenResult, {"seconds": None}, "'seconds' must be of type float; got None"),
        (PACGenResult, {"by_module": {"a": {"score": None}}}, r"'by_module' must be of type dict\[str, dict\[str, fl"),
        (Certificate, {"status": 1}, "'status' must be of type str; got 1"),
        (Certificate, {"refinement": {"gain": "much"}}, r"'refinement' must be of type dict\[str, float\] \| None"),
        (Certificate, {"notes": "a note"}, r"'notes' must be of type list\[str\]; got 'a note'"),
        (Spectrum, {"eigenvalues": [1.0, math.inf]}, r"'eigenvalues' must be of type list\[float\]; got \[1.0, inf\]"),
        (Spectrum, {"converged": [1, 0, 1]}, r"'converged' must be of type list\[bool\]"),
        (Sharpness, {"converged": 1}, "'converged' must be of type bool; got 1"),
        (Measures, {"name": 3}, "'name' must be of type str; got 3"),
        (WorstCaseSharpness, {"rises": 0.5}, r"'rises' must be of type list\[float\]; got 0.5"),
    ],
)
def test_values_of_the_wrong_type(kind: type[Result], change: dict[str, Any], message: str) -> None:
    values = next(values for known, values in OLD if known is kind)
    with pytest.raises(InputError, match=message):
        kind.from_dict({**values, **change})


def test_whole_numbers_pass_for_floats_and_lists_become_tuples() -> None:
    changed = Spectrum.from_dict(
        {**SHARPNESS["spectrum"], "eigenvalues": [3, 2.5, 1], "trace": 7, "trace_stderr": None}
    )
    assert changed.eigenvalues == (3, 2.5, 1) and changed.largest == 3 and changed.trace == 7


def test_a_module_may_say_more_but_not_less() -> None:
    values = saved("pacgen")
    name, numbers = next(iter(values["by_module"].items()))
    assert PACGenResult.from_dict({**values, "by_module": {name: {**numbers, "rank": 3}}}).by_module[name]["rank"] == 3


DIAGONAL = DiagonalEstimate(
    values={"w": torch.ones(2)}, trace=2.0, loss=1.0, num_units=1.0, num_examples=1, estimator=Estimator.EXACT
)
SLICE = LossSlice(
    steps=(torch.zeros(1),), losses=torch.zeros(1), loss=0.5, box=torch.zeros(2), names=("a",), num_parameters=2
)


def test_tensors_are_not_written() -> None:
    assert DIAGONAL.to_dict()["estimator"] == "exact" and not {"values", "stderr"} & set(DIAGONAL.to_dict())
    assert SLICE.to_dict() == {"version": 1, "loss": 0.5, "names": ["a"], "num_parameters": 2}
    with pytest.raises(
        InputError, match=r"Hessian diagonal cannot be read from JSON, .* \['values'\]\. Estimate it ag"
    ):
        DiagonalEstimate.from_dict(DIAGONAL.to_dict())
    with pytest.raises(InputError, match=r"tensors \['box', 'losses', 'steps'\]\. Call loss_slice\(\) again"):
        LossSlice.from_dict(SLICE.to_dict())
    found = Spectrum.from_dict(SHARPNESS["spectrum"])
    kept = dataclasses.replace(found, eigenvectors=({"w": torch.ones(2)},))
    assert kept.to_dict() == found.to_dict() and json.dumps(kept.to_dict())


def test_an_estimate_of_rho_is_written_and_read(tmp_path: Path) -> None:
    estimate = LipschitzEstimate(
        value=2.0, ratios=(1.0, 2.0), iterations=(3, 3), batches=1, converged=True, num_hvps=12
    )
    estimate.save(tmp_path / "rho.json")
    assert LipschitzEstimate.load(tmp_path / "rho.json") == estimate and estimate.notes == ()


@pytest.mark.parametrize("key", [1, None, (1, 2)])
@pytest.mark.parametrize(("kind", "values"), OLD, ids=[kind.__name__ for kind, _ in OLD])
def test_keys_are_strings(kind: type[Result], values: dict[Any, Any], key: Any) -> None:
    with pytest.raises(InputError, match=r"has the key .*: expected strings, as in JSON"):
        kind.from_dict({"version": kind.version} | values | {key: 3})
