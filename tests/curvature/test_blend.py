"""The blend errs at most 1.15 times as much as the better of its parts, on tiny models of the benchmark of losses."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import logging

from hf_pacgen import ScoreConfig, hessian_diagonal

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "benchmarks"))
import losses

SEEDS = 5


@pytest.mark.parametrize("name", ["masked tokens", "tokens", "segmentation", "several labels"])
def test_the_blend_is_near_the_better_of_its_parts_for_every_loss(name: str) -> None:
    logging.set_verbosity_error()
    problem = losses.PROBLEMS[name]
    model, batches = losses.made(problem, 60)
    options: Any = {"loss_fn": problem.loss_fn, "progress": False}
    truth = losses.flat(hessian_diagonal(model, batches, config=ScoreConfig(estimator="exact"), **options))

    def error(estimator: str) -> float:
        configs = [ScoreConfig(estimator=estimator, passes=1, seed=seed) for seed in range(SEEDS)]
        found = [losses.flat(hessian_diagonal(model, batches, config=config, **options)) for config in configs]
        return statistics.median(float((one - truth).norm() / truth.norm()) for one in found)

    assert error("blend") <= 1.15 * min(error("hutchinson"), error("gauss_newton"))
