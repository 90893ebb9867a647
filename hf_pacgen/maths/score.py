"""The PACGen score Ψ, its complexity K(η) and their active fractions: pure tensor functions.

Source: Wang, Keskar, Xiong, Socher, *Identifying Generalization Properties in Neural
Networks* (2018, arXiv 1809.07402).  All logarithms are natural, all KL in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Named = Tensor | Mapping[str, Tensor]
CHUNK = 1 << 20  # elements converted to float64 at a time, so that a large embedding costs no second copy


@dataclass(frozen=True, kw_only=True)
class ScoreTerms:
    """Sums over parameters, from which a score is made.  They add over tensors, shards and processes."""

    score: float = 0.0  # Ψ, in nats
    kl_complexity: float = 0.0  # K(η), in nats
    num_active: int = 0  # coordinates of Ψ in which the curvature branch is the larger
    num_kl_active: int = 0  # the same for K(η)
    num_parameters: int = 0  # coordinates summed
    smoothness: float = 0.0  # Σ ρ√m N_i, to be held against the trace of H

    def __add__(self, other: ScoreTerms) -> ScoreTerms:
        return ScoreTerms(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def neighborhood(weights: Tensor, *, gamma: float, epsilon: float) -> Tensor:
    """N_i = γ|w_i| + ε, the half-width of the box around w_i in which ρ holds."""
    return weights.abs().mul_(gamma).add_(epsilon)


def pacgen_score(
    weights: Named,
    hessian_diagonal: Named,
    hessian_lipschitz: float,
    *,
    gamma: float = 0.1,
    epsilon: float = 0.1,
    eta: float = 1.0,
    num_parameters: int | None = None,
) -> ScoreTerms:
    """Ψ and K(η) of weights with a given curvature.

    Ψ = Σ_i log((|w_i| + N_i) · max(sqrt(H_ii + ρ√m N_i), 1/N_i)) and
    K(η) = Σ_i log((|w_i| + N_i) · max(sqrt(η(H_ii/3 + ρ√m N_i/9)), 1/N_i)), N_i = γ|w_i| + ε.
    A negative curvature counts as 0.  Sums are accumulated in float64 whatever the input's dtype.
    Where ε = 0 and w_i = 0 the box is empty and the coordinate takes its limit, log((1+γ)/γ).

    Args:
        weights, hessian_diagonal: w and H_ii, tensors of one shape or of one set of names.
        hessian_lipschitz: ρ ≥ 0.
        gamma, epsilon, eta: ≥ 0 and not both 0, and η > 0.
        num_parameters: m of the whole model; by default the number of weights given.

    Raises:
        ValueError: on settings out of range, shapes or names that differ, and non-finite values.

    Source: arXiv 1809.07402; K(η) restores η and the constants which the published Ψ drops.

    >>> terms = pacgen_score(torch.zeros(2), torch.full((2,), 400.0), 0.0, gamma=0.0, epsilon=0.1)
    >>> round(terms.score / 2, 4) == round(math.log(0.1 * math.sqrt(400.0)), 4)
    True
    """
    if not (gamma >= 0 and epsilon >= 0 and gamma + epsilon > 0 and math.isfinite(gamma + epsilon)):
        raise ValueError(f"gamma and epsilon must be finite, >= 0 and not both 0; got {gamma} and {epsilon}.")
    if not (eta > 0 and math.isfinite(eta)):
        raise ValueError(f"eta must be a positive, finite number; got {eta}.")
    if not (hessian_lipschitz >= 0 and math.isfinite(hessian_lipschitz)):
        raise ValueError(f"hessian_lipschitz must be a finite number >= 0; got {hessian_lipschitz}.")
    pairs = list(_pairs(weights, hessian_diagonal))
    # m is of the whole model, also where these are a shard or a module of it
    count = num_parameters if num_parameters is not None else sum(w.numel() for _, w, _ in pairs)
    smoothness = hessian_lipschitz * math.sqrt(count)
    total = ScoreTerms()
    for name, w, h in pairs:
        for w_part, h_part in zip(w.reshape(-1).split(CHUNK), h.reshape(-1).split(CHUNK), strict=True):
            total = total + _chunk_terms(name, w_part, h_part, smoothness, gamma, epsilon, eta)
    return total


def _pairs(weights: Named, curvature: Named) -> Iterator[tuple[str, Tensor, Tensor]]:
    if isinstance(weights, Tensor) or isinstance(curvature, Tensor):
        if not (isinstance(weights, Tensor) and isinstance(curvature, Tensor)):
            raise ValueError("weights and hessian_diagonal must both be tensors, or both be tensors by name.")
        weights, curvature = {"weights": weights}, {"weights": curvature}
    if weights.keys() != curvature.keys():
        odd = sorted(weights.keys() ^ curvature.keys())
        raise ValueError(f"weights and hessian_diagonal must have the same names; these are in one only: {odd[:5]}.")
    for name, w in weights.items():
        h = curvature[name]
        if w.shape != h.shape:
            shapes = f"{name!r} has {tuple(w.shape)} and {tuple(h.shape)}"
            raise ValueError(f"weights and hessian_diagonal must have the same shapes; {shapes}.")
        yield name, w.detach(), h.detach()


def _chunk_terms(
    name: str, w: Tensor, h: Tensor, smoothness: float, gamma: float, epsilon: float, eta: float
) -> ScoreTerms:
    w, h = w.double(), h.double()
    if not (w.isfinite().all() and h.isfinite().all()):
        which = "weights" if not w.isfinite().all() else "hessian_diagonal"
        raise ValueError(f"{which} must be finite; {name!r} contains NaN or infinity.")
    box = neighborhood(w, gamma=gamma, epsilon=epsilon)
    # In logarithms: log(|w| + N) + max(log sqrt(curvature), -log N); log 0 = -inf leaves the box branch.
    log_inverse_box = box.log().neg_()
    log_range = w.abs().add_(box).log_()
    if epsilon == 0:  # N = gamma |w|: the limit w -> 0 of log((|w| + N)/N) is log((1 + gamma)/gamma)
        empty = box == 0
        log_inverse_box[empty] = math.log((1 + gamma) / gamma)
        log_range[empty] = 0.0
    # ρ√m N_i: how far the curvature may rise within the box
    smooth = smoothness * box
    total_smoothness = smooth.sum().item()  # now, as the term is divided in place below
    curvature = (h + smooth).clamp_(min=0).log_().mul_(0.5)
    kl_curvature = (h.div(3).add_(smooth.div_(9))).mul_(eta).clamp_(min=0).log_().mul_(0.5)
    if epsilon == 0:
        curvature[empty] = kl_curvature[empty] = -math.inf
    return ScoreTerms(
        score=(log_range + torch.maximum(curvature, log_inverse_box)).sum().item(),
        kl_complexity=(log_range + torch.maximum(kl_curvature, log_inverse_box)).sum().item(),
        num_active=int((curvature > log_inverse_box).sum()),
        num_kl_active=int((kl_curvature > log_inverse_box).sum()),
        num_parameters=w.numel(),
        smoothness=total_smoothness,
    )
