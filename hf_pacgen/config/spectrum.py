"""Settings of the Hessian's spectrum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hf_pacgen.config.score import HVPMethod
from hf_pacgen.config.settings import SUBSET, Config, Count, Natural, Positive, Seed, option
from hf_pacgen.facts import Choice


class SpectrumEnd(Choice):
    """Which eigenvalues are the top ones; a member's facts are largest for those that are wanted most."""

    facts: Callable[[Any], Any]

    LARGEST = "largest", lambda values: values
    # the most negative ones: how far the weights are from a minimum
    SMALLEST = "smallest", lambda values: -values
    MAGNITUDE = "magnitude", abs


@dataclass(frozen=True, kw_only=True)
class SpectrumConfig(Config):
    """Settings of :func:`hf_pacgen.hessian_spectrum`.

    >>> SpectrumConfig(probes=0).to_dict()["which"]
    'largest'
    """

    which: SpectrumEnd = option(
        SpectrumEnd.LARGEST,
        "Which eigenvalues are wanted: the 'largest', the 'smallest' (most negative), or those of largest 'magnitude'.",
    )
    iterations: Count | None = option(
        None,
        "Most Lanczos steps, each of which keeps a vector of the model's size. By default 300, less where they would "
        "take more than 2 GiB, and at least 2k + 20.",
    )
    tolerance: Positive = option(
        1e-4, "An eigenvalue has converged when its residual is at most this part of it, noise of the products aside."
    )
    probes: Natural = option(4, "Random probes for the trace and the spectral density; 0 leaves both out.")
    density_iterations: Count = option(12, "Lanczos steps from every probe: nodes of the spectral density.")
    hvp: HVPMethod = option(HVPMethod.AUTO, "Hessian-vector product, as for the score.")
    displacement: Positive | None = option(None, "Norm ‖h z‖ of a finite difference's step. By default controlled.")
    max_examples: Count | None = option(None, SUBSET)
    keep_vectors: bool = option(False, "Return the eigenvectors as well, k vectors of the model's size.")
    seed: Seed = option(0, "Seed of the start vectors, the probes and the subset.")
