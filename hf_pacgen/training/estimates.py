"""Estimates of the curvature that training makes now and then, each on one batch of its data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import IterableDataset

from hf_pacgen.config import Estimator, NoiseConfig, ScoreConfig
from hf_pacgen.curvature.checks import examine
from hf_pacgen.curvature.diagonal import estimate_diagonal
from hf_pacgen.curvature.lipschitz import estimate_lipschitz
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.noise.curvature_tracker import CurvatureTracker
from hf_pacgen.training.run_facts import Run


def needs_batches(config: NoiseConfig) -> bool:
    """Whether there is anything to estimate."""
    return config.shape.uses_curvature and (config.curvature.facts.from_batches or config.rho == "estimate")


def refuse_used_up(data: Any) -> None:
    """Raise where batches for an estimate would be taken out of the training data."""
    if isinstance(data, IterableDataset) and iter(data) is iter(data):
        raise ValueError(
            "curvature='hutchinson' and rho='estimate' take batches of the training data, and this iterable "
            "dataset can be gone through only once, so they would be lost to the training. Use curvature='price' "
            "and a number for rho, or a dataset whose __iter__ starts anew."
        )


def estimate(tracker: CurvatureTracker, run: Run, step: int) -> None:
    """Add the estimates that are due before an optimizer step."""
    config = tracker.config
    # one batch, which every process takes, so that the running curvature stays the same everywhere
    few: Any = {"max_examples": run.batch_size, "seed": config.seed + step}
    if config.curvature.facts.from_batches and step % int(config.curvature_every or 1) == 0:
        score = ScoreConfig(estimator=Estimator.HUTCHINSON, passes=1, lipschitz_directions=0, **few)
        with _space(tracker, run, score) as space:
            tracker.add_estimate(estimate_diagonal(space, score).values)
    if config.rho == "estimate" and step % config.rho_every == 0:
        one: Any = {"lipschitz_directions": 1, "lipschitz_iterations": 3, "epsilon_scale": "absolute"}
        score = ScoreConfig(gamma=config.gamma, epsilon=config.epsilon, **one, **few)
        with _space(tracker, run, score) as space:
            tracker.rho = estimate_lipschitz(space, score).value


@contextmanager
def _space(tracker: CurvatureTracker, run: Run, score: ScoreConfig) -> Iterator[WeightSpace]:
    tracker.noise.reduce_every_gradient()
    with run.objective(score) as objective, WeightSpace(objective) as space:
        examine(space, score.hvp)
        yield space
