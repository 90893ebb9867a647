"""A plan as a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_pacgen.results.plan import Plan

FIELDS: dict[str, Any] = {
    "num_parameters": 10,
    "num_all_parameters": 12,
    "trainable_bytes": 40,
    "parameter_bytes": 48,
    "num_batches": 3,
    "num_examples": 6,
    "estimator": "blend",
    "passes": {"checks": {"forwards": 10, "backwards": 4}},
    "forwards": 10,
    "backwards": 4,
    "layouts": ({"processes": 2, "weights": "sharded", "refused": "it is in bfloat16."},),
    "status": ("A sentence.",),
}


def test_a_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    plan = Plan(**FIELDS)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.layout(2, "sharded")["refused"] == "it is in bfloat16."
    assert "num batches" in repr(plan) and plan.notes == ("A sentence.",)
    with pytest.raises(KeyError, match="expected one of 2 sharded"):
        plan.layout()
