"""Benchmarks that run where their device is not, and pages that are made of their results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
import plans  # noqa: E402


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, words)])
    gpu.main()


def test_the_script_for_gpus_keeps_what_it_has_when_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "gpu.json"
    common = ("--device", "cpu", "--tiny", "--repeats", 1, "--output", output)
    call(monkeypatch, *common, "--minutes", 0, "--parts", "large_products", "score")
    found = json.loads(output.read_text())
    assert found["gpu"] is None and found["tiny"] is True
    assert {row["why not"] for row in (*found["large_products"], *found["score"])} == {"no time is left"}
    call(monkeypatch, *common, "--parts", "steps")
    rows = json.loads(output.read_text())
    assert "score" in rows and [row["noise"] for row in rows["steps"]] == ["none", *gpu.recipes()]
    assert rows["steps"][0]["seconds"] > 0
    assert all("seconds" in row or row["why not"] for row in rows["steps"])  # a recipe may be for adapters alone


def test_products_have_ratios_to_a_gradient_and_say_what_is_refused() -> None:
    bench = gpu.Bench(gpu.Arguments(device="cpu", tiny=True, repeats=1))
    model, batch = gpu.made(bench, gpu.gpt2, torch.bfloat16)
    rows = list(gpu.products_of(bench, {"model": "GPT-2"}, model, batch, peers=False))
    assert [row["what"] for row in rows] == [
        "gradient",
        "reverse_over_reverse",
        "forward_over_reverse",
        "finite_difference",
    ]
    assert rows[0]["seconds / gradient's"] == 1.0 and rows[1]["peak / gradient's"] > 1
    assert "needs float32 weights" in rows[3]["why not"] and "seconds" not in rows[3]
    row: dict[str, Any] = {}
    with gpu.said(row):
        raise torch.OutOfMemoryError("none is left")
    assert row == {"why not": "the device is out of memory"}


def test_without_a_gpu_the_script_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"There is no CUDA GPU here: expected one\. Give --device cpu --tiny"):
        call(monkeypatch)


def test_the_guide_has_the_planned_figures() -> None:
    page = (BENCHMARKS.parents[1] / "docs" / "guides" / "scale.md").read_text(encoding="utf-8")
    made = plans.tables(json.loads(plans.RESULTS.read_text(encoding="utf-8")))
    assert plans.put_into(page, made) == page, "run: python examples/benchmarks/plans.py --guide docs/guides/scale.md"
    with pytest.raises(SystemExit, match="The page has no place for the tables"):
        plans.put_into("A page.", made)


def test_figures_are_followed_along_a_line() -> None:
    assert plans.followed([40.0, 60.0], 100) == 40 + 99 * 20
    with pytest.raises(SystemExit, match="Expected figures that grow with the number of layers, got"):
        plans.followed([60.0, 40.0], 100)
