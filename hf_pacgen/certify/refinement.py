"""Gradient descent on the noise itself, from its Hessian-shaped start.

The shape 1/s² = ηH + 1/τ² minimizes a quadratic approximation of E_u L̂(w+u) + KL/η in the training loss L̂.  The
refinement minimizes the kl bound itself, over scales and means, by the reparameterized gradient u = s·z, with the
probability of a wrong label in place of the 0-1 error, which has no gradient.  Where the errors are no 0-1 errors of
logits, it minimizes E_u L̂(w+u) + KL/η.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.certify.draws import NoiseStream, NoisyErrors
from hf_pacgen.certify.posterior import Posterior, PriorScales
from hf_pacgen.curvature.weight_space import zeros_like
from hf_pacgen.distributed.processes import send_to_device
from hf_pacgen.maths.pac_bayes import kl_bound

__all__ = ["refine"]

REFIT = 20
"""Steps after which the prior's τ, and the bound's slopes, are taken anew."""
BETAS = (0.9, 0.99)
FARTHEST = 8.0
"""By how much the logarithm of a scale may change."""
MEMORY = 0.98
"""Of the running mean of the error."""


def refine(
    noisy: NoisyErrors,
    posterior: Posterior,
    prior: PriorScales,
    *,
    n: int,
    delta: float,
    error: float,
    eta: float,
    steps: int,
    learning_rate: float = 0.05,
    move_means: bool = True,
    tick: Callable[[], Any] = lambda: None,
) -> Posterior:
    """Minimize the bound by Adam over log-scales and means, one batch and one draw a step.

    Steps are in units of the noise: means move by multiples of their initial scale, scales by factors.

    Args:
        noisy: model, data and draws.
        posterior, error: where to start, and its noisy error.
        prior: center, groups and grid; its τ follow the posterior.
        n, delta: of the bound.
        eta: η, where the errors have no smooth stand-in.
        steps, learning_rate: of Adam, with a linear decay to 0.
        move_means: whether means move.
    """
    shifts = {name: torch.zeros_like(scale) for name, scale in posterior.scales.items()}
    logs = {name: torch.zeros_like(scale) for name, scale in posterior.scales.items()}
    moving = [*logs.values(), *(shifts.values() if move_means else ())]
    optimizer = torch.optim.Adam(moving, lr=learning_rate, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    current, batches = posterior, _cycle(noisy)
    fit, inverse_eta = prior.fit(current), 1 / eta
    slopes = _slopes(error, fit.kl + fit.price, n, delta)
    try:
        for step in range(steps):
            if step % REFIT == REFIT - 1:
                fit = prior.fit(current)
                slopes = _slopes(error, fit.kl + fit.price, n, delta)
            noise = NoiseStream(current, noisy.seed, "refinement", step, most=1)[0]
            noisy.displace(current, noise)
            gradients, mean, bounded = _gradient(noisy, next(batches))
            if bounded:
                error, inverse_eta = MEMORY * error + (1 - MEMORY) * mean, slopes
            for name, center in current.means.items():
                scale, g = current.scales[name], gradients[name].nan_to_num(0, 0, 0).to(center.device)
                # KL = -log s + (E u² + (mean - p)²)/(2τ²) + ..., and u and s scale together
                precision = fit.scales[name] ** -2
                second = current.noise(name).second_moment() * precision
                logs[name].grad = (g * noise[name] + (second - 1) * inverse_eta).to(scale.dtype)
                pull = (center.double() - prior.center_of(name, center).double()) * precision * inverse_eta
                shifts[name].grad = ((g + pull) * posterior.scales[name]).to(scale.dtype)
            optimizer.step()
            schedule.step()
            means = {n: m + shifts[n] * posterior.scales[n] for n, m in posterior.means.items()}
            current = posterior.rescaled(means, {n: log.clamp_(-FARTHEST, FARTHEST).exp() for n, log in logs.items()})
            tick()
    finally:
        noisy.saved.restore()
    return current


def _slopes(error: float, kl: float, n: int, delta: float) -> float:
    """How much error a nat of KL is worth at this bound: (∂bound/∂KL)/(∂bound/∂error)."""
    q, nats = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (min(max(error, 1e-6), 1.0), kl))
    by_error, by_kl = torch.autograd.grad(kl_bound(q, nats, n, delta), (q, nats))
    return (by_kl / by_error.clamp(min=1e-12)).item()


def _gradient(noisy: NoisyErrors, pair: tuple[int, Any] | None) -> tuple[dict[str, Tensor], float, bool]:
    """Gradient and value of the mean loss of a batch (of one batch of each process), and whether it is an error."""
    objective, processes = noisy.objective, noisy.objective.batches.processes
    names, parameters = zip(*objective.parameters.items(), strict=True)
    gradients = {n: zeros_like(p) for n, p in objective.parameters.items()}
    sums = torch.zeros(3, dtype=torch.float64)
    with processes.together():
        if pair is not None:
            index, batch = pair
            batch = send_to_device(batch, objective.device)
            errors = noisy.rate.soft(batch, index)
            if errors is None:
                result = objective.loss(batch, index)
                total, units = result.total, result.units
            else:
                total, units = errors.sum(), errors.numel()
            found = torch.autograd.grad(total, parameters, allow_unused=True)
            gradients |= {n: g.to(gradients[n].dtype) for n, g in zip(names, found, strict=True) if g is not None}
            sums += torch.tensor([total.item(), units, errors is not None], dtype=torch.float64)
    for tensor in (*gradients.values(), sums):
        processes.sum_(tensor)
    total, units, bounded = sums.tolist()
    return {name: gradient / max(units, 1) for name, gradient in gradients.items()}, total / max(units, 1), bounded > 0


def _cycle(noisy: NoisyErrors) -> Iterator[tuple[int, Any] | None]:
    """This process's batches, again and again, in another order each time where they are in memory."""
    generator = torch.Generator().manual_seed(noisy.seed)
    while True:
        batches = noisy.batches()
        if isinstance(batches, list):
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        empty = True
        for pair in batches:
            if noisy.objective.has_units(pair[1]):
                empty = False
                yield pair
        if empty:
            yield None
