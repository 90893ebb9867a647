"""Noise and scores under DeepSpeed (ZeRO-1 and 2): those of DistributedDataParallel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed: make deepspeed")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("deepspeed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    settings = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [*command, str(TESTS / "deepspeed_runs.py"), str(folder)], env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-5000:] + done.stdout[-2000:]
    yield torch.load(folder / "found.pt")


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max((found[name] - expected[name]).abs().max().item() for name in expected)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    "case", ["isotropic", "price", "clipped", "hutchinson", "callback", "rows", "ascent", "average"]
)
def test_noise_is_that_of_replicas(found: dict[str, Any], case: str, stage: int) -> None:
    noisy, replicas = found[f"{case} {stage}"], found[f"{case} None"]
    # estimates by Hessian-vector products of almost the same weights are almost the same
    assert distance(noisy, replicas) < (1e-4 if case == "hutchinson" else 1e-5)
    assert distance(noisy, found[f"plain {stage}"]) > 1e-3


@pytest.mark.parametrize("stage", [1, 2])
def test_without_noise_training_is_that_of_the_plain_trainer(found: dict[str, Any], stage: int) -> None:
    assert distance(found[f"silent {stage}"], found[f"plain {stage}"]) == 0


@pytest.mark.parametrize("stage", [1, 2])
def test_a_score_is_that_of_one_process(found: dict[str, Any], stage: int) -> None:
    scores = found[f"score {stage}"]
    for way in ("trainer", "engine"):
        for key, value in scores["alone"].items():
            assert scores[way][key] == pytest.approx(value, rel=1e-5), f"{way}: {key}"


def test_optimizer_states_may_be_on_the_cpu(found: dict[str, Any]) -> None:
    assert distance(found["offloaded"], found["price 2"]) < 1e-5


def test_a_resumed_training_goes_on_as_if_nothing_had_been(found: dict[str, Any]) -> None:
    assert distance(found["resumed"], found["price 2"]) == 0


def test_the_weights_are_clean_after_an_exception_and_after_a_step(found: dict[str, Any]) -> None:
    assert all(found["after an exception"])
    assert all(found["bfloat16"])


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("antithetic", "takes two gradients of every batch.*Use a recipe of one gradient"),
        ("adam", "reads the optimizer's second moments.*curvature='price'"),
        ("no ZeRO", "needs ZeRO, whose optimizer.*'stage': 1"),
        ("ZeRO-3", "not supported with DeepSpeed ZeRO-3.*'stage': 2"),
    ],
)
def test_what_cannot_be_is_refused_in_words(found: dict[str, Any], what: str, words: str) -> None:
    import re

    assert re.search(words, found["refusals"][what])
