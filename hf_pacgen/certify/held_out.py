"""The exact bound on a model that never saw the examples, beside the one for the noisy model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_pacgen.certify.draws import NoisyErrors
from hf_pacgen.certify.priors import Prior
from hf_pacgen.config import CertificateConfig
from hf_pacgen.curvature.displacement import TensorDirection
from hf_pacgen.distributed.processes import send_to_device
from hf_pacgen.maths.held_out_bounds import betting_bound, exact_error_bound


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Errors of a model without noise on examples that it never saw, and what they prove of it."""

    bound: float
    errors: float  # their sum; a whole number for 0-1 errors
    of: str  # whose: "model" or "prior"
    method: str

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a certificate."""
        return {f"test_set_{name}": value for name, value in vars(self).items()}


def was_fitted(model: nn.Module, prior: Prior, config: CertificateConfig) -> bool:
    """Whether the model may have been fitted on the examples: not if the user says so, nor if it is a split's prior."""
    if config.held_out:
        return False
    return prior.held_out is None or not prior.held_out.is_as_trained(model)


def held_out_bound(noisy: NoisyErrors, prior: Prior, fitted: bool, delta: float, *, binary: bool) -> HeldOut | None:
    """The bound of the model if the examples are new to it, else of the prior; None of a prior without weights.

    The prior has not seen the examples whatever the model has.  Errors that are 0 or 1 by their nature (``binary``)
    have the exact bound, others in [0, 1] that by betting: what was seen may not decide between them.
    """
    parameters = noisy.saved.parameters
    if fitted and not prior.gives_all(parameters):
        return None
    try:
        if fitted:
            _set_to(noisy, {name: prior.state[name] for name in parameters})
        found = noisy.visit(lambda index, batch: _errors(noisy, index, batch))
    finally:
        noisy.saved.restore()
    errors = torch.cat(found)
    if binary:
        count = int(errors.sum())
        bound, method, total = exact_error_bound(count, len(errors), delta), "exact (Clopper-Pearson)", float(count)
    else:
        bound, method, total = betting_bound(errors.numpy(), delta), "betting", errors.sum().item()
    return HeldOut(bound=bound, errors=total, of="prior" if fitted else "model", method=method)


def _errors(noisy: NoisyErrors, index: int, batch: Any) -> Tensor:
    found = noisy.rate(send_to_device(batch, noisy.objective.device), index)
    noisy.tick()
    return found


@torch.no_grad()
def _set_to(noisy: NoisyErrors, weights: Mapping[str, Tensor]) -> None:
    saved = noisy.saved
    moved = {name: value.to(saved.copy[name]) - saved.copy[name] for name, value in weights.items()}
    saved.displace([(TensorDirection(moved), 1.0)])
    for name, value in weights.items():  # w + (p - w) is p but for rounding
        saved.parameters[name].copy_(value)
