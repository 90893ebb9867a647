"""Estimates of the curvature that training makes now and then, each on one batch of its data."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from hf_pacgen.config import Estimator, NoiseConfig, ScoreConfig
from hf_pacgen.curvature.diagonal import estimate_diagonal
from hf_pacgen.curvature.examination import examine
from hf_pacgen.curvature.lipschitz import estimate_lipschitz
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.batches import read_twice
from hf_pacgen.data.inspection import REFUSALS
from hf_pacgen.data.losses import NotFinite, NothingLabeled
from hf_pacgen.distributed.shards import local
from hf_pacgen.errors import describe
from hf_pacgen.noise.curvature_tracker import CurvatureTracker
from hf_pacgen.training.run_facts import Run

logger = logging.getLogger(__name__)

REDRAWN = 4
"""Draws of one batch before more examples are taken."""
ANOTHER = 1_000_003
"""Between the seeds of draws, far from those of other steps."""
ELSEWHERE = 7_000_003
"""The same, where the loss of a batch was not finite."""
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


def rehearse(config: NoiseConfig, run: Run) -> None:
    """Look at the first batch as an estimate would, before the training begins.

    Raises:
        ValueError: what would be refused in the first step, or in a later one.
    """
    asked = [f"curvature={config.curvature.value!r}"] if config.curvature.facts.from_batches else []
    asked += ["rho='estimate'"] if config.rho == "estimate" else []
    try:
        with run.objective(ScoreConfig(max_examples=run.batch_size, seed=config.seed)):
            pass
    except (NothingLabeled, NotFinite):
        return  # by chance, in a few examples
    except REFUSALS as error:
        raise ValueError(
            f"The training was not begun, because {' and '.join(asked)} cannot be estimated: it takes the loss of a "
            f"batch of the training data by itself, and {describe(error)}. Use curvature='price' and a number for rho, "
            "which need nothing but the gradients of the training."
        ) from error


def estimate(tracker: CurvatureTracker, run: Run, step: int) -> None:
    """Add the estimates that are due before an optimizer step."""
    config = tracker.config
    if config.curvature.facts.from_batches and step % int(config.curvature_every or 1) == 0:

        def diagonal(few: dict[str, Any]) -> None:
            score = ScoreConfig(estimator=Estimator.HUTCHINSON, passes=1, lipschitz_directions=0, **few)
            with _space(tracker, run, score) as space:
                tracker.add_estimate(_finite(tracker, estimate_diagonal(space, score).values))

        _try(run, config.seed + step, diagonal, "running curvature", known=tracker.means[0].total > 0)
    if config.rho == "estimate" and (step % config.rho_every == 0 or not tracker.rho_is_known):

        def lipschitz(few: dict[str, Any]) -> None:
            one: Any = {"lipschitz_directions": 1, "lipschitz_iterations": 3, "epsilon_scale": "absolute"}
            score = ScoreConfig(gamma=config.gamma, epsilon=config.epsilon, **one, **few)
            with _space(tracker, run, score) as space:
                tracker.take_rho(estimate_lipschitz(space, score).value)

        _try(run, config.seed + step, lipschitz, "ρ", known=tracker.rho_is_known)


def _try(run: Run, seed: int, work: Callable[[dict[str, Any]], None], what: str, *, known: bool) -> None:
    # one broken example costs plain training one step, which a callback may undo; it must not cost more here
    for draw in itertools.count():
        try:
            return _on_labels(run, seed + draw * ELSEWHERE, work)
        except NotFinite as error:
            if known:
                logger.warning("An estimate of the noise was left out, and its %s stays as it is: %s", what, error)
                return None
            if draw + 1 >= REDRAWN:  # no accident: there is nothing to go on with
                raise


def _finite(tracker: CurvatureTracker, diagonal: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    odd = sum(int(not bool(local(part).isfinite().all())) for part in diagonal.values())
    # of shards all processes must come to the same answer
    if tracker.noise.total(torch.tensor(float(odd), device=next(iter(diagonal.values())).device)) > 0:
        raise NotFinite("The diagonal of the Hessian on a batch is not finite.")
    return diagonal


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
