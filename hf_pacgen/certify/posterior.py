"""The noise around the certified weights: its shape, its KL to the prior and the price of the prior's scale.  Pure.

The prior of a group of weights is a mixture over a grid of scales, π = Σ_j v_j N(p, τ_j²) with Σ_j v_j = 1, so that

    KL(Q‖π) ≤ -log Σ_j v_j exp(-KL(Q‖N(p, τ_j²))) ≤ min_j KL(Q‖N(p, τ_j²)) + log(1/v_j)

(the log-sum inequality, minimized over what share of Q is compared with each part).  The right side is a union bound
over the grid; the middle, which is what is paid, is less where neighboring scales fit almost as well as the best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_pacgen.maths.distributions import Noise, NoiseDistribution, difference, make_noise, normal_prior_kl
from hf_pacgen.maths.score import neighborhood

# τ from 1.2e-4 to 11.3; with a ratio of 2^(1/4) the nearest costs less than 0.01 nats for each weight that is not flat
DEFAULT_SCALES = [2.0 ** (j / 4) for j in range(-52, 15)]
SHAPE_ITERATIONS = 12


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Q: every weight is its mean + u, u independent noise; tensors by parameter name."""

    means: Mapping[str, Tensor]
    scales: Mapping[str, Tensor]  # s of normal and truncated normal noise, σ of uniform noise
    half_widths: Mapping[str, Tensor] | None  # the box of truncated normal noise, None for the others
    distribution: NoiseDistribution

    def noise(self, name: str) -> Noise:
        """The distribution of u of one parameter tensor."""
        box = None if self.half_widths is None else self.half_widths[name]
        return make_noise(self.distribution, self.scales[name], box)

    def rescaled(self, means: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> Posterior:
        """Q around other means, with all noise scaled by factors (the box as well)."""
        scales = {name: scale * factors[name] for name, scale in self.scales.items()}
        boxes = self.half_widths and {name: box * factors[name] for name, box in self.half_widths.items()}
        return replace(self, means=means, scales=scales, half_widths=boxes)


@dataclass(frozen=True, kw_only=True)
class PriorFit:
    """The best scales of the prior for a posterior."""

    kl: float  # KL(Q‖N(p, τ²)) in nats, at the best τ of each group
    price: float  # what the choice of the τ costs, in nats, to be added to kl: at most log(1/v) for each group
    scales: dict[str, float]  # τ by parameter name
    kl_by_name: dict[str, float]


class PriorScales:
    """A prior N(p, τ²) whose τ is chosen, after the data were seen, from a grid that was fixed before.

    ``center`` has p by parameter name, 0 where a name is missing; ``groups`` says which names share one τ.  The scales
    weigh the same, or ``least`` is what the smallest weighs and the others share the rest: where the center may be as
    good as what was trained, no scale is small enough.
    """

    def __init__(
        self,
        center: Mapping[str, Tensor],
        groups: Mapping[str, str],
        grid: Sequence[float],
        *,
        least: float | None = None,
    ) -> None:
        self.center, self.groups, self.trained = center, groups, least is not None
        self.grid = torch.tensor(sorted(grid), dtype=torch.float64)
        self.log_weights = torch.full_like(self.grid, -math.log(len(self.grid)))
        if least is not None and len(self.grid) > 1:
            self.log_weights[0] = math.log(least)
            self.log_weights[1:] = math.log((1 - least) / (len(self.grid) - 1))
        self.members: dict[str, list[str]] = {}
        for name, group in groups.items():
            self.members.setdefault(group, []).append(name)

    def fit(self, posterior: Posterior) -> PriorFit:
        """The τ of each group at which the KL is smallest."""
        sums = {name: self._sums(posterior, name) for name in self.groups}
        scales: dict[str, float] = {}
        parts: dict[str, float] = {}
        price = 0.0
        for names in self.members.values():
            # sums do not depend on τ, so the whole grid costs one pass over the weights
            entropy, spread, count = (sum(column) for column in zip(*(sums[name] for name in names), strict=True))
            by_scale = normal_prior_kl(entropy, spread, self.grid, int(count))
            index = (by_scale - self.log_weights).argmin()
            best = self.grid[index]
            price += (-torch.logsumexp(self.log_weights - by_scale, 0) - by_scale[index]).item()
            for name in names:
                scales[name] = best.item()
                parts[name] = normal_prior_kl(sums[name][0], sums[name][1], best, int(sums[name][2])).item()
        return PriorFit(kl=sum(parts.values()), price=price, scales=scales, kl_by_name=parts)

    def nearest(self, value: float) -> float:
        """The τ of the grid nearest to a value, in ratio."""
        # a grid of ratios is even in logarithms
        target = math.log(min(max(value, self.grid[0].item()), self.grid[-1].item()))
        return self.grid[(self.grid.log() - target).abs().argmin()].item()

    def _sums(self, posterior: Posterior, name: str) -> tuple[float, float, int]:
        mean, noise = posterior.means[name], posterior.noise(name)
        spread = noise.spread(mean, self.center_of(name, mean)).expand(mean.shape)
        return noise.entropy().expand(mean.shape).sum().item(), spread.sum().item(), mean.numel()

    def center_of(self, name: str, like: Tensor) -> Tensor:
        """p of one parameter, on the device of ``like``."""
        center = self.center.get(name)
        return torch.zeros_like(like) if center is None else center.to(like.device)


def shaped_posterior(
    means: Mapping[str, Tensor],
    curvature: Mapping[str, Tensor],
    prior: PriorScales,
    *,
    eta: float,
    distribution: NoiseDistribution,
    gamma: float = 0.1,
    epsilon: float = 0.1,
) -> Posterior:
    """Noise with E u_i² = 1/(η max(H_ii, 0) + 1/τ²), which minimizes η Σ H_ii E u_i²/2 + KL.

    τ is the fixed point τ² = Σ(w - p)²/Σ(1 - s²/τ²) for each group of weights (MacKay 1992), on the prior's grid.
    Uniform and truncated normal noise is cut to the box N_i = γ|w_i| + ε.
    """
    scales: dict[str, Tensor] = {}
    for names in prior.members.values():
        moved = sum(difference(means[n], prior.center_of(n, means[n])).square().sum().item() for n in names)
        felt = {n: curvature[n].to(means[n].device).double().clamp(min=0) * eta for n in names}
        tau = prior.grid[-1].item()  # from the widest prior downward
        for _ in range(SHAPE_ITERATIONS):
            effective = sum((f / (f + tau**-2)).sum().item() for f in felt.values())
            previous, tau = tau, prior.nearest(math.sqrt(moved / effective) if effective > 0 else math.inf)
            if tau == previous:
                break
        # 1/s² = ηH + 1/τ²
        scales |= {n: (f + tau**-2).rsqrt() for n, f in felt.items()}
    # bounded noise stays in its box, whatever the curvature allows
    boxes = {n: neighborhood(w.double(), gamma=gamma, epsilon=epsilon) for n, w in means.items()}
    kind = distribution.facts
    scales = {n: math.sqrt(kind.level_ratio) * s for n, s in scales.items()}
    if kind.within_level:
        scales = {n: s.minimum(boxes[n]) for n, s in scales.items()}
    dtype = {n: torch.promote_types(w.dtype, torch.float32) for n, w in means.items()}
    return Posterior(
        means={n: w.detach().clone() for n, w in means.items()},
        scales={n: scales[n].to(dtype[n]) for n in means},
        half_widths={n: boxes[n].to(dtype[n]) for n in means} if kind.needs_box else None,
        distribution=distribution,
    )
