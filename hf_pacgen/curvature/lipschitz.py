"""ρ, the Lipschitz constant of the Hessian in the box around the weights."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

from hf_pacgen.config import ScoreConfig
from hf_pacgen.curvature.hvp import HessianProduct
from hf_pacgen.curvature.operators import HessianDifference, Tick
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.losses import NotFinite
from hf_pacgen.maths.counter_rng import stream_key
from hf_pacgen.maths.lanczos import Krylov, Recent, lanczos
from hf_pacgen.results.lipschitz import LipschitzEstimate, median_stderr

__all__ = ["LipschitzEstimate", "estimate_lipschitz"]

TOLERANCE = 0.05
"""Relative change of the norm in the last Lanczos step below which it counts as converged."""
SHARP = 0.03
"""Where steps of finite differences begin, as a part of the default: gradients and Lanczos vectors are sharp."""


def estimate_lipschitz(space: WeightSpace, config: ScoreConfig, *, tick: Tick = lambda: None) -> LipschitzEstimate:
    """Median over a few random u in the box of ‖(H(w+u) - H(w)) v‖/‖u‖, v by the Lanczos process.

    Every u meets batches of its own, drawn at random, so that the spread of the ratios is that over displacements and
    data.  The difference of Hessians is symmetric but indefinite, so the largest |eigenvalue| is wanted: Lanczos
    (without reorthogonalization, which the extreme eigenvalues do not need), begun at the difference of two gradients,
    finds it in a few steps with three vectors.  Directions are shared out over processes.

    Args:
        space: the weights, which are left as found.
        config: γ, ε, and the numbers of directions, iterations and batches.
        tick: called after every iteration and batch.

    Raises:
        ValueError: a product in the box is not finite.
    """
    processes = space.objective.batches.processes
    epsilons = space.half_widths(*config.box)
    found: dict[int, tuple[float, int, bool, int]] = {}
    with processes.together():
        chosen = _batches(space, config)
        each = min(config.lipschitz_batches, len(chosen))
        # a norm within a few percent will do, so longer steps (fewer repeats) than elsewhere
        product = HessianProduct(space, config.hvp, displacement=config.displacement, asymmetry=0.03)
        for number in range(processes.rank, config.lipschitz_directions, processes.size):
            # data of fewer batches than that are gone through again
            batches = [chosen[(number * each + i) % len(chosen)] for i in range(each)]
            shift = space.box(config.seed, "box", number, gamma=config.gamma, epsilons=epsilons)
            difference = HessianDifference(product, batches, shift, tick)
            norm, steps, converged = _norm(difference, config, number)
            space.restore()
            found[number] = (norm / space.length(shift), steps, converged, difference.num_hvps)
    merged = {key: value for part in processes.gather(found) for key, value in part.items()}
    rows = [merged[number] for number in sorted(merged)]
    ratios = tuple(row[0] for row in rows)
    return LipschitzEstimate(
        value=statistics.median(ratios),
        stderr=median_stderr(ratios),
        largest=max(ratios),
        ratios=ratios,
        iterations=tuple(row[1] for row in rows),
        batches=each,
        converged=2 * sum(row[2] for row in rows) >= len(rows),
        num_hvps=sum(row[3] for row in rows),
    )


def _batches(space: WeightSpace, config: ScoreConfig) -> list[tuple[int, Any]]:
    """Batches with loss units for all displacements, drawn at random; the same in every process."""
    objective = space.objective
    if not objective.batches.draws_at_random:
        objective.guard.note(
            "ρ was estimated on the first batches of the data, whose number is not known beforehand. If the data is "
            "sorted they are not typical, and its ± does not show that; shuffle it, or pass a dataset with a length."
        )
    order = objective.batches.drawn(stream_key(config.seed, "batches of rho"))
    counted = ((i, b) for i, b in order if objective.has_units(b))
    return list(itertools.islice(counted, config.lipschitz_directions * config.lipschitz_batches))


def _norm(difference: HessianDifference, config: ScoreConfig, number: int) -> tuple[float, int, bool]:
    """‖H(w+u) - H(w)‖ from below, the steps taken, and whether the last one hardly changed it."""
    space = difference.space
    difference.product.start_at(SHARP)
    start = difference.gradients()  # two gradients, which save more iterations than a random start would need
    length = space.norm(start)
    if length == 0 or not math.isfinite(length):
        start = space.stored(space.signs(config.seed, "lanczos", number))
    norms: list[float] = []

    def follow(krylov: Krylov, exhausted: bool) -> bool:
        norms.append(krylov.norm())
        return exhausted

    try:
        krylov = lanczos(
            difference.add,
            start,
            basis=Recent(space),
            iterations=config.lipschitz_iterations,
            dimension=space.num_parameters,
            stop=follow,
        )
    except FloatingPointError as error:
        raise NotFinite(
            "A Hessian-vector product in the box around the weights is not finite, so there is no ρ: expected "
            "finite numbers. Load the weights in float32 or bfloat16 if they are float16, which ends at 65504; "
            "or make gamma and epsilon smaller."
        ) from error
    before, norm = ([0.0, *norms])[-2:]
    return norm, len(norms), krylov.beta == 0 or abs(norm - before) <= TOLERANCE * norm
