"""Noise of a given level on a model's weights, for the time of a ``with`` block."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_pacgen.data.objective import Objective
from hf_pacgen.maths.distributions import NoiseDistribution
from hf_pacgen.model.state import fresh_caches, unwrap
from hf_pacgen.model.storage import independent
from hf_pacgen.noise.perturbation import Perturbation, ScaleFunction


@contextmanager
def perturbed(
    model: nn.Module,
    noise_scale: float | Mapping[str, Tensor | float],
    *,
    distribution: NoiseDistribution | str = NoiseDistribution.UNIFORM,
    seed: int,
    gamma: float = 0.1,
    epsilon: float = 0.1,
) -> Iterator[nn.Module]:
    """The model with noise u on its trainable weights; on the way out they are what they were, bit for bit.

    Args:
        model: on its device; tied weights (and several names of one memory) get one noise, frozen ones none.  Under
            ``fully_shard`` all processes must be here together.
        noise_scale: σ, for all weights or by parameter name, as a tensor of its shape or one number (then other
            parameters stay as they are): the half-width of "uniform", the standard deviation before truncation of the
            others.
        distribution: "uniform" (256 levels), "truncated_normal" (to N_i = γ|w_i| + ε) or "normal".
        seed: u is a function of the seed and of the parameters' names; no other random state is touched.
        gamma, epsilon: of N_i.

    Raises:
        ValueError: nothing to perturb; an unfit σ, seed or box; weights sharded otherwise than by ``fully_shard``.

    >>> layer = nn.Linear(2, 2)
    >>> before = layer.weight.detach().clone()
    >>> with perturbed(layer, 0.1, seed=0):
    ...     print(0 < (layer.weight - before).abs().max().item() <= 0.1)
    True
    >>> bool((layer.weight == before).all())
    True
    """
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0; got {seed!r}.")
    check_scale("gamma", gamma, {})
    check_scale("epsilon", epsilon, {})
    if NoiseDistribution(distribution).facts.needs_box and gamma == 0 and epsilon == 0:
        raise ValueError(
            "gamma and epsilon are both 0, so truncated noise has no room; make at least one of them positive."
        )
    bare = unwrap(model)
    parameters = independent({name: p for name, p in bare.named_parameters() if p.requires_grad})
    if not parameters:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameters, so there is nothing to perturb: expected at least "
            "one with requires_grad=True."
        )
    settings: dict[str, Any] = {"distribution": distribution, "gamma": gamma, "epsilon": epsilon}
    noise, scale = scaled_noise(parameters, noise_scale, model=bare, **settings)
    noise.draw(scale, int(seed), "perturbed")
    with fresh_caches(bare):
        try:
            noise.apply()
            yield model
        finally:
            noise.restore()


def scaled_noise(
    parameters: Mapping[str, Tensor],
    noise_scale: float | Mapping[str, Tensor | float],
    **settings: Any,
) -> tuple[Perturbation, ScaleFunction]:
    """A Perturbation and the function that gives its level: a number for all, or tensors by name for some."""
    if not isinstance(noise_scale, Mapping):
        check_scale("noise_scale", noise_scale, parameters)
        return Perturbation(parameters, **settings), lambda block, weights: torch.full_like(weights, noise_scale)
    noise = Perturbation({name: p for name, p in parameters.items() if name in noise_scale}, **settings)
    check_scale("noise_scale", noise_scale, parameters, noise)
    scales = {
        name: noise.part(name, torch.as_tensor(noise_scale[name]).detach().to(parameter.device))
        for name, parameter in noise.parameters.items()
    }
    # a copy, since the level may be overwritten
    return noise, lambda block, weights: noise.layout.gather(block, scales, weights.dtype).clone()


def check_scale(
    what: str,
    value: float | Mapping[str, Tensor | float],
    parameters: Mapping[str, Tensor],
    noise: Perturbation | None = None,
) -> None:
    """Raise unless ``value`` is a finite number >= 0, or tensors of such numbers by the names of some parameters."""
    # noise is made in float32 at least; a number its type cannot hold would be an infinite level
    types = {torch.promote_types(p.dtype, torch.float32) for p in parameters.values()}
    limit = min((torch.finfo(dtype).max for dtype in types), default=sys.float_info.max)
    if not isinstance(value, Mapping):
        if not _is_level(value, limit):
            numbers_by_name = ", or tensors by name" if parameters else ""
            raise ValueError(f"{what} must be a finite number >= 0{numbers_by_name}; got {value!r}.")
        return
    unknown = sorted(map(str, value.keys() - parameters.keys()))
    if unknown or not value:
        problem = f"names {unknown[:5]}, which are no trainable parameters" if unknown else "names no parameter"
        raise ValueError(
            f"{what} {problem}. Take the names from model.named_parameters(), where tied weights have one name."
        )
    for name, sigma in value.items():
        if not isinstance(sigma, Tensor):
            if not _is_level(sigma, limit):
                raise ValueError(f"{what}[{name!r}] must be a tensor or a number, finite and >= 0; got {sigma!r}.")
            continue
        if sigma.numel() != 1 and sigma.shape != parameters[name].shape:
            raise ValueError(
                f"{what}[{name!r}] must have shape {tuple(parameters[name].shape)}, like the parameter, or one "
                f"element; got {tuple(sigma.shape)}."
            )
        # with noise that is divided all processes must come to the same conclusion
        here = sigma if noise is None else noise.part(name, sigma)
        bad = 1.0 - (here.isfinite() & (here >= 0)).all().double()
        if (bad if noise is None else noise.total(bad)) > 0:
            raise ValueError(f"{what}[{name!r}] must be finite and >= 0 everywhere.")


def _is_level(value: Any, limit: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return 0 <= float(value) <= limit
    except OverflowError:
        return False  # an integer beyond every float


def noisy_loss(
    objective: Objective, noise: Perturbation, batch: Any, index: int, *, remedy: str
) -> tuple[float, float]:
    """The summed loss of a batch and its units, with the noise that is on the weights, if any.

    Raises:
        ValueError: the loss is not finite; where noise is on, the message says so, and ends with the remedy.
    """
    with torch.no_grad():
        try:
            result = objective.loss(batch, index)
        except ValueError as error:
            if noise.applied:
                raise ValueError(f"With the noise on the weights: {error} {remedy}") from error
            raise
    return result.total.item(), result.units
