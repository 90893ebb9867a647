"""Gradient descent on the noise itself, from its Hessian-shaped start.

The shape 1/s² = ηH + 1/τ² minimizes a quadratic approximation of E_u L̂(w+u) + KL/η in the training loss L̂.  The
refinement minimizes the kl bound itself, over scales and means, by the reparameterized gradient u = s·z, with the
probability of a wrong label in place of the 0-1 error, which has no gradient.  Where the errors are no 0-1 errors of
logits, it minimizes E_u L̂(w+u) + KL/η.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hf_pacgen.certify.draws import NoiseStream, NoisyErrors
from hf_pacgen.certify.posterior import Posterior, PriorFit
from hf_pacgen.certify.search import Candidate, Case, judge
from hf_pacgen.curvature.weight_space import zeros_like
from hf_pacgen.distributed.processes import send_to_device
from hf_pacgen.maths.pac_bayes import kl_bound

REFIT = 20  # steps after which the prior's τ and the bound's slope are computed again
BETAS = (0.9, 0.99)
FARTHEST = 8.0  # by how much the logarithm of a scale may change
MEMORY = 0.98  # of the running mean of the error


def refined(case: Case, start: Candidate, steps: int) -> Candidate:
    """The start, or what gradient descent made of it if that is better."""
    # both are judged under the same draws, so the better is not the luckier
    after = judge(case, _refine(case, start, steps), start.eta)
    return min(start, after, key=lambda candidate: candidate.rank)


def _refine(case: Case, start: Candidate, steps: int) -> Posterior:
    """Minimize the bound by Adam over log-scales and means, one batch and one draw a step."""
    # steps are in units of the noise: means move by multiples of their initial scale, scales by factors
    config, noisy, first = case.config, case.noisy, start.posterior
    shifts, logs = ({name: torch.zeros_like(scale) for name, scale in first.scales.items()} for _ in range(2))
    moving = [*logs.values(), *(shifts.values() if config.refine_mean else ())]
    # rates fall to 0, so that the end does not hang on the last batch
    optimizer = torch.optim.Adam(moving, lr=config.refine_learning_rate, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    current, fit, batches = first, start.fit, _cycle(noisy)
    # one nat of KL is worth this much error; 1/η until a batch is seen to have errors with a gradient
    error, worth = start.error, 1 / start.eta
    slope = _slope(case, error, fit)
    try:
        for step in range(steps):
            if step % REFIT == REFIT - 1:
                fit = case.prior.fit(current)
                slope = _slope(case, error, fit)
            noise = NoiseStream(current, noisy.seed, "refinement", step, most=1)[0]
            noisy.displace(current, noise)
            gradients, mean, bounded = _gradient(noisy, next(batches))
            if bounded:
                error, worth = MEMORY * error + (1 - MEMORY) * mean, slope
            for name, center in current.means.items():
                scale, g = current.scales[name], gradients[name].nan_to_num(0, 0, 0).to(center.device)
                # KL = -log s + (E u² + (mean - p)²)/(2τ²) + ..., and u and s scale together
                precision = fit.scales[name] ** -2
                second = current.noise(name).second_moment() * precision
                logs[name].grad = (g * noise[name] + (second - 1) * worth).to(scale.dtype)
                pull = (center.double() - case.prior.center_of(name, center).double()) * precision * worth
                shifts[name].grad = ((g + pull) * first.scales[name]).to(scale.dtype)
            optimizer.step()
            schedule.step()
            means = {n: m + shifts[n] * first.scales[n] for n, m in first.means.items()}
            current = first.rescaled(means, {n: log.clamp_(-FARTHEST, FARTHEST).exp() for n, log in logs.items()})
            noisy.tick()
    finally:
        noisy.saved.restore()
    return current


def _slope(case: Case, error: float, fit: PriorFit) -> float:
    """How much error a nat of KL is worth at this bound: (∂bound/∂KL)/(∂bound/∂error)."""
    # at an error of 0 the bound's slope is infinite
    values = (min(max(error, 1e-6), 1.0), fit.kl + fit.price)
    q, nats = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values)
    by_error, by_kl = torch.autograd.grad(kl_bound(q, nats, case.n, case.config.delta), (q, nats))
    return (by_kl / by_error.clamp(min=1e-12)).item()


def _gradient(noisy: NoisyErrors, pair: tuple[int, Any] | None) -> tuple[dict[str, Tensor], float, bool]:
    """Gradient and value of the mean loss of a batch (of one batch of each process), and whether it is an error."""
    objective, processes = noisy.objective, noisy.objective.batches.processes
    gradients = {name: zeros_like(p) for name, p in objective.parameters.items()}
    sums = torch.zeros(3, dtype=torch.float64)
    with processes.together():
        if pair is not None:
            index, batch = pair[0], send_to_device(pair[1], objective.device)
            errors = noisy.rate.soft(batch, index)
            if errors is None:
                result = objective.loss(batch, index)
                total, units = result.total, result.units
            else:
                total, units = errors.sum(), errors.numel()
            # not backward(): the caller's .grad is left alone
            found = torch.autograd.grad(total, list(objective.parameters.values()), allow_unused=True)
            for (name, gradient), g in zip(gradients.items(), found, strict=True):
                gradients[name] = gradient if g is None else g.to(gradient.dtype)
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
            # the other processes take a step all the same, and wait for this one in its collectives
            yield None
