"""Estimates of the curvature that training makes now and then, each on one batch of its data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import IterableDataset

from hf_pacgen.config import Estimator, NoiseConfig, ScoreConfig
from hf_pacgen.curvature.diagonal import estimate_diagonal
from hf_pacgen.curvature.examination import examine
from hf_pacgen.curvature.lipschitz import estimate_lipschitz
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.batches import read_twice
from hf_pacgen.data.losses import NothingLabeled
from hf_pacgen.noise.curvature_tracker import CurvatureTracker
from hf_pacgen.training.run_facts import Run

REDRAWN = 4
"""Draws of one batch before more examples are taken."""
ANOTHER = 1_000_003
"""Between the seeds of draws, far from those of other steps."""
MOST_EXAMPLES = 10_000
"""Of a stream, in which a label is looked for."""


def needs_batches(config: NoiseConfig) -> bool:
    """Whether there is anything to estimate."""
    return config.shape.uses_curvature and (config.curvature.facts.from_batches or config.rho == "estimate")


def refuse_used_up(run: Run) -> None:
    """Raise where batches for an estimate would be taken out of the training data, as a second reading of it shows."""
    if not isinstance(run.dataset, IterableDataset):
        return
    try:
        read_twice(run.dataset, run.collate_fn, run.model)
    except ValueError as error:
        raise ValueError(
            "curvature='hutchinson' and rho='estimate' take batches of the training data, and this iterable "
            "dataset can be gone through only once, so they would be lost to the training. Use curvature='price' "
            "and a number for rho, or a dataset whose __iter__ starts anew."
        ) from error


def estimate(tracker: CurvatureTracker, run: Run, step: int) -> None:
    """Add the estimates that are due before an optimizer step."""
    config = tracker.config
    if config.curvature.facts.from_batches and step % int(config.curvature_every or 1) == 0:

        def diagonal(few: dict[str, Any]) -> None:
            score = ScoreConfig(estimator=Estimator.HUTCHINSON, passes=1, lipschitz_directions=0, **few)
            with _space(tracker, run, score) as space:
                tracker.add_estimate(estimate_diagonal(space, score).values)

        _on_labels(run, config.seed + step, diagonal)
    if config.rho == "estimate" and step % config.rho_every == 0:

        def lipschitz(few: dict[str, Any]) -> None:
            one: Any = {"lipschitz_directions": 1, "lipschitz_iterations": 3, "epsilon_scale": "absolute"}
            score = ScoreConfig(gamma=config.gamma, epsilon=config.epsilon, **one, **few)
            with _space(tracker, run, score) as space:
                tracker.rho = estimate_lipschitz(space, score).value

        _on_labels(run, config.seed + step, lipschitz)


def _on_labels(run: Run, seed: int, work: Callable[[dict[str, Any]], None]) -> None:
    """Do some work on one batch, which every process takes, so that the running curvature stays the same everywhere.

    A batch that happens to have no label is not the data: another is drawn, and then more at a time.

    Raises:
        NothingLabeled: no batch of the data has any.
    """
    size = run.batch_size
    for draw in itertools.count():
        try:
            return work({"max_examples": size, "seed": seed + draw * ANOTHER})
        except NothingLabeled:
            # of a stream the first examples are taken, whatever the seed; of a sized dataset at most all
            most = MOST_EXAMPLES if run.num_examples is None else run.num_examples
            if size >= most:
                raise
            size = min(size * (2 if draw >= REDRAWN else 1), most)


@contextmanager
def _space(tracker: CurvatureTracker, run: Run, score: ScoreConfig) -> Iterator[WeightSpace]:
    tracker.noise.reduce_every_gradient()
    with run.objective(score) as objective, WeightSpace(objective) as space:
        examine(space, score.hvp)
        yield space
