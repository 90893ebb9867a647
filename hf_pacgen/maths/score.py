"""The PACGen score Ψ, its complexity K(η) and what they are made of: pure tensor functions.

Source: Wang, Keskar, Xiong, Socher, *Identifying Generalization Properties in Neural
Networks* (2018, arXiv 1809.07402).  All logarithms are natural, all KL in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_pacgen.facts import Choice

Named = Tensor | Mapping[str, Tensor]
CHUNK = 1 << 18  # elements converted to float64 at a time, so that a large embedding costs no second copy


GAMMA, EPSILON = 0.1, 0.1
"""γ and ε of the article."""


@dataclass(frozen=True, kw_only=True)
class EpsilonFacts:
    """What ε is a part of."""

    of_tensor: bool  # of the root mean square of each tensor, and not a length by itself


class EpsilonScale(Choice):
    """What ε of N_i = γ|w_i| + ε is measured in."""

    facts: EpsilonFacts

    ABSOLUTE = "absolute", EpsilonFacts(of_tensor=False)  # the article's
    # small tensors, such as those of adapters, get a box of their own size; unchanged by rescaling between layers
    RMS = "rms", EpsilonFacts(of_tensor=True)


@dataclass(frozen=True, kw_only=True)
class ScoreTerms:
    """Sums over parameters, from which a score is made.  They add over tensors, shards and processes."""

    score: float = 0.0  # Ψ, in nats
    kl_complexity: float = 0.0  # K(η), in nats
    kl_weights: float = 0.0  # of K(η), the saturated part Σ log((|w_i| + N_i)/N_i): the size of the weights
    kl_hessian: float = 0.0  # of K(η), what the Hessian alone adds
    kl_lipschitz: float = 0.0  # of K(η), what ρ adds to that
    kl_curvature: float = 0.0  # ½ Σ log(1 + η max(H_ii, 0) (γ w_i)²/3)
    num_active: int = 0  # coordinates of Ψ in which the curvature branch is the larger
    num_kl_active: int = 0  # the same for K(η)
    num_parameters: int = 0  # coordinates summed
    smoothness: float = 0.0  # Σ ρ√m N_i, to be held against the trace of H

    def __add__(self, other: ScoreTerms) -> ScoreTerms:
        return ScoreTerms(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def neighborhood(weights: Tensor, *, gamma: float, epsilon: float) -> Tensor:
    """N_i = γ|w_i| + ε, the half-width of the box around w_i in which ρ holds."""
    return weights.abs().mul_(gamma).add_(epsilon)


def half_width(epsilon: float, scale: EpsilonScale | str, mean_square: float, reach: float = 0.0) -> float:
    """ε of a tensor, as a length, given the mean of its squares.

    A tensor of zeros has no size of its own; its box is as good as empty, so that it adds nothing to K(η), unless it
    has a ``reach``: the size of its entries that would matter to the weight that they are added to.
    """
    if not EpsilonScale(scale).facts.of_tensor:
        return epsilon
    return epsilon * max(math.sqrt(mean_square), reach, 1e-12)


def pacgen_score(
    weights: Named,
    hessian_diagonal: Named,
    hessian_lipschitz: float,
    *,
    gamma: float = GAMMA,
    epsilon: float = EPSILON,
    epsilon_scale: EpsilonScale | str = EpsilonScale.ABSOLUTE,
    eta: float = 1.0,
    num_parameters: int | None = None,
) -> ScoreTerms:
    """Ψ and K(η) of weights with a given curvature.

    Ψ = Σ_i log((|w_i| + N_i) · max(sqrt(H_ii + ρ√m N_i), 1/N_i)) and
    K(η) = Σ_i log((|w_i| + N_i) · max(sqrt(η(H_ii/3 + ρ√m N_i/9)), 1/N_i)), N_i = γ|w_i| + ε.
    A negative curvature counts as 0.  Sums are accumulated in float64 whatever the input's dtype.

    K(η) is the sum of three parts: ``kl_weights`` = Σ log((|w_i| + N_i)/N_i), the size of the weights;
    ``kl_hessian`` = Σ max(0, ½ log(N_i² η max(H_ii, 0)/3)), what the Hessian alone adds; ``kl_lipschitz``, what ρ adds
    to that.  ``kl_curvature`` = ½ Σ log(1 + η max(H_ii, 0) (γ w_i)²/3) has neither ρ nor ε: it is the KL of a Gaussian
    posterior to a prior of standard deviation γ|w_i|/√3, log-determinants only.

    Where ε = 0 and w_i = 0 the box is empty and the coordinate takes its limit, log((1+γ)/γ).

    Args:
        weights, hessian_diagonal: w and H_ii, tensors of one shape or of one set of names.
        hessian_lipschitz: ρ ≥ 0.
        gamma, epsilon, eta: ≥ 0 and not both 0, and η > 0.
        epsilon_scale: ``"absolute"``, or ``"rms"``: ε is a part of the root mean square of each tensor.
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
    total, of_tensor = ScoreTerms(), EpsilonScale(epsilon_scale).facts.of_tensor
    for name, w, h in pairs:
        squares = w.double().square().mean().item() if of_tensor else 0.0
        width = half_width(epsilon, epsilon_scale, squares)
        for w_part, h_part in zip(w.reshape(-1).split(CHUNK), h.reshape(-1).split(CHUNK), strict=True):
            _require_finite(name, w_part, h_part)
            terms = coordinate_terms(w_part, h_part, smoothness, gamma=gamma, epsilon=width, eta=eta)
            total = total + terms.sum()
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


def _require_finite(name: str, w: Tensor, h: Tensor) -> None:
    if not (w.isfinite().all() and h.isfinite().all()):
        which = "weights" if not w.isfinite().all() else "hessian_diagonal"
        raise ValueError(f"{which} must be finite; {name!r} contains NaN or infinity.")


@dataclass(frozen=True, kw_only=True)
class CoordinateTerms:
    """The terms of the score of each weight, in float64."""

    score: Tensor
    kl_complexity: Tensor
    kl_weights: Tensor
    kl_hessian: Tensor
    kl_curvature: Tensor
    active: Tensor
    kl_active: Tensor
    smoothness: Tensor

    def sum(self) -> ScoreTerms:
        """The sums over the weights."""
        sums = {name: getattr(self, name).sum().item() for name in ("score", "kl_complexity", "smoothness")}
        parts = {name: getattr(self, name).sum().item() for name in ("kl_weights", "kl_hessian", "kl_curvature")}
        return ScoreTerms(
            **sums,
            **parts,
            kl_lipschitz=(self.kl_complexity - self.kl_weights - self.kl_hessian).sum().item(),
            num_active=int(self.active.sum()),
            num_kl_active=int(self.kl_active.sum()),
            num_parameters=self.score.numel(),
        )


def coordinate_terms(
    w: Tensor, h: Tensor, smoothness: float, *, gamma: float, epsilon: float, eta: float
) -> CoordinateTerms:
    """The terms of the score of each of some weights: see :func:`pacgen_score`.

    Args:
        w, h: finite tensors that broadcast against each other.
        smoothness: ρ√m.
        gamma, epsilon, eta: γ, ε as a length, and η.
    """
    w, h = w.double(), h.double()
    box = neighborhood(w, gamma=gamma, epsilon=epsilon)
    # In logarithms: log(|w| + N) + max(log sqrt(curvature), -log N); log 0 = -inf leaves the box branch.
    log_inverse_box = box.log().neg_()
    log_range = w.abs().add_(box).log_()
    smooth = smoothness * box  # ρ√m N_i: how far the curvature may rise within the box
    curvature = (h + smooth).clamp_(min=0).log_().mul_(0.5)
    kl_curvature = (h.div(3).add_(smooth / 9)).mul_(eta).clamp_(min=0).log_().mul_(0.5)
    kl_hessian = (h * (eta / 3)).clamp_(min=0).log_().mul_(0.5)
    if epsilon == 0:  # N = gamma |w|: the limit w -> 0 of log((|w| + N)/N) is log((1 + gamma)/gamma)
        empty = box == 0
        log_inverse_box[empty] = math.log((1 + gamma) / gamma)
        log_range[empty] = 0.0
        empty = empty.expand_as(h) if h.ndim > empty.ndim else empty
        curvature[empty] = kl_curvature[empty] = kl_hessian[empty] = -math.inf
    return CoordinateTerms(
        score=log_range + torch.maximum(curvature, log_inverse_box),
        kl_complexity=log_range + torch.maximum(kl_curvature, log_inverse_box),
        kl_weights=log_range + log_inverse_box,
        kl_hessian=(kl_hessian - log_inverse_box).clamp_(min=0),
        kl_curvature=(h.clamp(min=0) * (w * gamma).square_() * (eta / 3)).log1p_().mul_(0.5),
        active=curvature > log_inverse_box,
        kl_active=kl_curvature > log_inverse_box,
        smoothness=smooth,
    )
