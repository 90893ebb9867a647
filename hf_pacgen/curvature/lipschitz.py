"""ρ, the Lipschitz constant of the Hessian in the box around the weights."""

from __future__ import annotations

import itertools
import math

from hf_pacgen.config import ScoreConfig
from hf_pacgen.curvature.hvp import HessianProduct
from hf_pacgen.curvature.operators import HessianDifference, Tick
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.maths.lanczos import Krylov, Recent, lanczos
from hf_pacgen.results.lipschitz import LipschitzEstimate

__all__ = ["LipschitzEstimate", "estimate_lipschitz"]

TOLERANCE = 0.05
"""Relative change of the norm in the last Lanczos step below which it counts as converged."""
SHARP = 0.03
"""Where steps of finite differences begin, as a part of the default: gradients and Lanczos vectors are sharp."""


def estimate_lipschitz(space: WeightSpace, config: ScoreConfig, *, tick: Tick = lambda: None) -> LipschitzEstimate:
    """max over a few random u in the box of ‖(H(w+u) - H(w)) v‖/‖u‖, v by the Lanczos process.

    The difference of Hessians is symmetric but indefinite, so the largest |eigenvalue| is wanted: Lanczos
    (without reorthogonalization, which the extreme eigenvalues do not need) finds it in a few steps with
    three vectors.  Directions are shared out over processes.

    Args:
        space: the weights, which are left as found.
        config: γ, ε, and the numbers of directions, iterations and batches.
        tick: called after every iteration and batch.

    Raises:
        ValueError: a product in the box is not finite.
    """
    objective = space.objective
    processes = objective.batches.processes
    found: dict[int, tuple[float, int, bool, int]] = {}
    with processes.together():
        counted = ((i, b) for i, b in objective.batches.every() if objective.has_units(b))
        batches = list(itertools.islice(counted, config.lipschitz_batches))
        # a norm within a few percent will do, so longer steps (fewer repeats) than elsewhere
        product = HessianProduct(space, config.hvp, displacement=config.displacement, asymmetry=0.03)
        for number in range(processes.rank, config.lipschitz_directions, processes.size):
            shift = space.box(config.seed, "box", number, gamma=config.gamma, epsilon=config.epsilon)
            difference = HessianDifference(product, batches, shift, tick)
            norm, steps, converged = _norm(difference, config, number)
            space.restore()
            found[number] = (norm / space.length(shift), steps, converged, difference.num_hvps)
    merged = {key: value for part in processes.gather(found) for key, value in part.items()}
    rows = [merged[number] for number in sorted(merged)]
    best = max(rows, key=lambda row: row[0])
    return LipschitzEstimate(
        value=best[0],
        ratios=tuple(row[0] for row in rows),
        iterations=tuple(row[1] for row in rows),
        batches=len(batches),
        converged=best[2],
        num_hvps=sum(row[3] for row in rows),
    )


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
        raise ValueError(
            "A Hessian-vector product in the box around the weights is not finite, so there is no ρ: expected "
            "finite numbers. Load the weights in float32 or bfloat16 if they are float16, which ends at 65504; "
            "or make gamma and epsilon smaller."
        ) from error
    before, norm = ([0.0, *norms])[-2:]
    return norm, len(norms), krylov.beta == 0 or abs(norm - before) <= TOLERANCE * norm
