"""The result of a score: shares by module that add up, what they rank, and files of other shapes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_results import module, sample_result

from hf_pacgen import PACGenResult
from hf_pacgen.errors import InputError
from hf_pacgen.maths.score import ScoreTerms, pacgen_score
from hf_pacgen.results.pacgen import MODULE_FIELDS, by_module, score_fields


def test_a_result_survives_a_file(tmp_path: Path) -> None:
    result = sample_result()
    path = tmp_path / "result.json"
    result.save(path)
    assert PACGenResult.load(path) == result
    assert json.loads(path.read_text())["version"] == PACGenResult.version
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    values = sample_result().to_dict()
    with pytest.raises(ValueError, match=r"has version 99; this release reads version 1"):
        PACGenResult.from_dict(values | {"version": 99})
    with pytest.raises(ValueError, match="expected a JSON object with a 'version'"):
        PACGenResult.from_dict({"score": 1.0})
    with pytest.raises(ValueError, match=r"missing \['score'\], unknown \['scores'\]"):
        PACGenResult.from_dict({("scores" if k == "score" else k): v for k, v in values.items()})
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken.json is not JSON"):
        PACGenResult.load(tmp_path / "broken.json")
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        sample_result().save(tmp_path / "nowhere" / "result.json")


def terms_of(sizes: dict[str, int]) -> dict[str, ScoreTerms]:
    """Ψ and K(η) of random weights and curvatures, by parameter."""
    generator = torch.Generator().manual_seed(0)

    def random(count: int) -> torch.Tensor:
        return torch.rand(count, generator=generator, dtype=torch.float64)

    return {
        name: pacgen_score(random(n), 900 * random(n), 0.1, eta=50.0, num_parameters=sum(sizes.values()))
        for name, n in sizes.items()
    }


SIZES = {"a.weight": 20, "a.bias": 5, "b.c.weight": 12, "temperature": 1}


def test_modules_own_what_their_parameters_add_up_to() -> None:
    terms, traces = terms_of(SIZES), {name: float(i + 1) for i, name in enumerate(SIZES)}
    found = by_module(terms, traces)
    assert list(found) == ["a", "b.c", "temperature"]  # a parameter of the model itself stands for its own
    parts = ("kl_weights", "kl_hessian", "kl_lipschitz")
    assert all(set(numbers) == {*MODULE_FIELDS, *parts, "kl_curvature"} for numbers in found.values())
    assert found["a"]["hessian_trace"] == 3 and found["a"]["num_parameters"] == 25
    total = score_fields(sum(terms.values(), ScoreTerms()))
    total |= {f"kl_{part}": value for part, value in total["kl_parts"].items()}
    for name in ("score", "kl_complexity", "num_parameters", "kl_curvature", *parts):
        assert 0 < math.fsum(numbers[name] for numbers in found.values()) == pytest.approx(total[name], rel=1e-12)
    for numbers in (total, *found.values()):
        assert math.fsum(numbers[part] for part in parts) == pytest.approx(numbers["kl_complexity"], rel=1e-12)
    assert total["kl_excess"] == pytest.approx(total["kl_complexity"] - total["kl_weights"], rel=1e-12)


def test_values_per_parameter_are_the_sums_divided_by_m() -> None:
    fields = score_fields(
        ScoreTerms(
            score=6.0,
            kl_complexity=8.0,
            kl_weights=5.0,
            kl_hessian=1.0,
            kl_lipschitz=2.0,
            kl_curvature=0.5,
            num_active=1,
            num_kl_active=3,
            num_parameters=4,
            smoothness=9.0,
        )
    )
    assert fields == {
        "score": 6.0,
        "score_per_parameter": 1.5,
        "kl_complexity": 8.0,
        "kl_complexity_per_parameter": 2.0,
        "kl_parts": {"weights": 5.0, "hessian": 1.0, "lipschitz": 2.0},
        "kl_excess": 3.0,
        "kl_curvature": 0.5,
        "active_fraction": 0.25,
        "kl_active_fraction": 0.75,
        "num_parameters": 4,
    }


def test_modules_are_ranked_by_their_complexity() -> None:
    top, rest = sample_result().ranked_modules(2)
    assert [name for name, _ in top] == ["layer.0", "layer.1"] and [m["kl_complexity"] for m in rest] == [30]
    assert sample_result().ranked_modules(9)[1] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_parameters": 0}, r"'num_parameters' must be at least 1; got 0\."),
        ({"by_module": {"head": module(1, 1, 0)}}, r"the module 'head' must have .*and at least one parameter; it has"),
        *(
            (
                {"by_module": {"head": {k: v for k, v in module(1, 1, 1).items() if k != name}}},
                r"the module 'head' must have hessian_trace, .*Write the file with PACGenResult\.save\(\)",
            )
            for name in MODULE_FIELDS
        ),
    ],
)
def test_modules_and_models_without_parameters_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PACGenResult.from_dict(sample_result().to_dict() | change)
