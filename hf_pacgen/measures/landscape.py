"""The loss around a solution: its mean, and slices through it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from hf_pacgen.curvature.displacement import SavedWeights, TensorDirection
from hf_pacgen.curvature.operators import MeanLoss
from hf_pacgen.curvature.weight_space import zeros_like
from hf_pacgen.maths.counter_rng import rademacher, stream_key
from hf_pacgen.maths.score import neighborhood
from hf_pacgen.measures.session import DataOptions, measure, session
from hf_pacgen.noise.perturbed import check_scale
from hf_pacgen.results.landscape import LossSlice

OUTLINE = 360  # rays along which the outline of the noise box in a plane is found


@measure
def mean_loss(model: nn.Module, data: Any, *, max_examples: int | None = None, **options: Unpack[DataOptions]) -> float:
    """L̂(w), the mean loss over all loss units of the data, without dropout.  Arguments are those of :func:`pacgen`."""
    with session(
        model, data, max_examples=max_examples, stage="loss", passes=1, whole=True, weights=False, **options
    ) as (
        objective,
        tick,
    ):
        return MeanLoss(objective, tick)()


@measure
def loss_slice(
    model: nn.Module,
    data: Any,
    *,
    directions: int | Sequence[Mapping[str, Tensor]] = 1,
    points: int = 41,
    reach: float = 2.0,
    gamma: float = 0.1,
    epsilon: float = 0.1,
    half_widths: Mapping[str, Tensor] | None = None,
    names: Sequence[str] = (),
    seed: int = 0,
    max_examples: int | None = None,
    **options: Unpack[DataOptions],
) -> LossSlice:
    """The loss along a line or in a plane through the weights, and where it leaves the noise box |u_i| ≤ N_i.

    Args:
        model, data, options: as for :func:`hf_pacgen.pacgen`.
        directions: one or two vectors by parameter name (eigenvectors of :func:`hessian_spectrum`, a path between two
            solutions), or 1 or 2 for random ones, N_i with random signs, which lead to corners of the box.
        points: of each direction; odd, so that w is one of them.
        reach: how far the slice goes, in multiples of the box.
        gamma, epsilon: of the box N_i = γ|w_i| + ε.
        half_widths: N_i by parameter name instead.
        names: of the directions, for the picture.
        seed: of random directions.
        max_examples: as in :class:`~hf_pacgen.config.score.ScoreConfig`.

    Raises:
        ValueError: other than one or two directions, unknown names, other shapes, a direction of length 0, and what
            :func:`hf_pacgen.pacgen` raises.

    Source: Li, Xu, Taylor, Studer, Goldstein 2018, arXiv 1712.09913 (where directions are scaled by filters).
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 3 or points % 2 == 0:
        raise ValueError(f"points must be an odd integer of at least 3, so that one is at the weights; got {points!r}.")
    if not (math.isfinite(reach) and reach > 0):
        raise ValueError(f"reach must be a finite number greater than 0; got {reach!r}.")
    count = directions if isinstance(directions, int) else len(directions)
    if count not in (1, 2) or isinstance(directions, bool):
        raise ValueError(f"directions must be 1 or 2, or one or two vectors by parameter name; got {count}.")
    if names and len(names) != count:
        raise ValueError(
            f"names must have one name for each of the {count} directions; got {len(names)}. Name them all."
        )
    check_scale("gamma", gamma, {})
    check_scale("epsilon", epsilon, {})
    if gamma == 0 and epsilon == 0:
        raise ValueError("gamma and epsilon are both 0, so the box is empty; make at least one of them positive.")
    scope: Any = {"max_examples": max_examples, "seed": seed, "stage": "loss slice", "passes": points**count}
    with session(model, data, whole=True, **scope, **options) as (objective, tick):
        with SavedWeights(objective.parameters) as saved:
            if half_widths is None:
                widths = {n: w.to(zeros_like(w)) for n, w in saved.copy.items()}
                half = {n: neighborhood(w, gamma=gamma, epsilon=epsilon) for n, w in widths.items()}
            else:
                check_scale("half_widths", half_widths, saved.parameters)
                half = _whole(saved, half_widths)
            if isinstance(directions, int):
                vectors = [_corner(half, seed, number) for number in range(count)]
            else:
                vectors = [_vector(saved, given) for given in directions]
            box = _leaves(half, vectors)
            steps = tuple(torch.linspace(-far, far, points, dtype=torch.float64) for far in _ends(box, reach))
            losses = torch.zeros([points] * count, dtype=torch.float64)
            # each point from w itself, not from the point before: rounding does not add up along the way
            for place in torch.cartesian_prod(*[torch.arange(points)] * count).view(-1, count).tolist():
                terms = [(TensorDirection(v), s[i].item()) for v, s, i in zip(vectors, steps, place, strict=True)]
                saved.displace(terms)
                losses[tuple(place)] = MeanLoss(objective, tick)()
    kind = "random direction" if isinstance(directions, int) else "direction"
    labels = tuple(names) or tuple(f"{kind} {i + 1}" for i in range(count))
    # the points are odd in number, so the middle one is w
    at_weights, m = losses[tuple([points // 2] * count)].item(), objective.num_parameters
    return LossSlice(steps=steps, losses=losses, loss=at_weights, box=box, names=labels, num_parameters=m)


def _whole(saved: SavedWeights, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # tensors for all parameters, 0 where none is given
    return {n: given[n].to(zeros_like(w)).expand_as(w) if n in given else zeros_like(w) for n, w in saved.copy.items()}


def _corner(half: Mapping[str, Tensor], seed: int, number: int) -> dict[str, Tensor]:
    # a random corner of the box

    def signs(name: str, width: Tensor) -> Tensor:
        return rademacher(stream_key(seed, "slice", number, name), width.numel(), device=width.device).view_as(width)

    return {name: width * signs(name, width) for name, width in half.items()}


def _vector(saved: SavedWeights, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    check_scale("directions", {name: value.abs() for name, value in given.items()}, saved.parameters)
    vector = _whole(saved, given)
    if not any(bool(value.any()) for value in vector.values()):
        raise ValueError("directions has a vector of length 0: expected one that leads somewhere. Leave it out.")
    return vector


def _leaves(half: Mapping[str, Tensor], vectors: Sequence[Mapping[str, Tensor]]) -> Tensor:
    # where a line (two ends) or a plane (an outline) leaves the box

    def distance(*parts: float) -> float:
        found = math.inf  # where no weight with a width moves
        for name, width in half.items():
            along = sum(part * vector[name] for part, vector in zip(parts, vectors, strict=True)).abs()  # type: ignore[union-attr]
            found = min(found, torch.where(along > 0, width / along, math.inf).min().item())
        return found

    if len(vectors) == 1:
        end = distance(1.0)
        return torch.tensor([-end, end], dtype=torch.float64)
    # the two directions may be of very different lengths: turn in units of where each leaves the box by itself
    units = [_or_one(distance(1.0, 0.0)), _or_one(distance(0.0, 1.0))]
    outline = []
    for ray in range(OUTLINE + 1):  # the last closes the outline
        angle = 2 * math.pi * ray / OUTLINE
        way = (units[0] * math.cos(angle), units[1] * math.sin(angle))
        length = distance(*way)
        outline.append([length * way[0], length * way[1]])
    return torch.tensor(outline, dtype=torch.float64)


def _ends(box: Tensor, reach: float) -> list[float]:
    # how far the slice goes along each direction: some multiple of the box, or of the direction if there is none
    sizes = [box.abs().max().item()] if box.ndim == 1 else box.abs().amax(0).tolist()
    return [reach * _or_one(size) for size in sizes]


def _or_one(size: float) -> float:
    # a direction along which all half-widths are 0, or that never leaves the box, has no size of its own
    return size if math.isfinite(size) and size > 0 else 1.0
