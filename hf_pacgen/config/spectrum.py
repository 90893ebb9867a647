"""Settings of the Hessian's spectrum."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hf_pacgen.config.score import HVPMethod
from hf_pacgen.config.settings import Config, check_flag, check_number, choice, option

__all__ = ["SpectrumEnd", "SpectrumConfig"]


class SpectrumEnd(str, Enum):
    """Which eigenvalues are the top ones."""

    LARGEST = "largest"
    SMALLEST = "smallest"
    MAGNITUDE = "magnitude"


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
    iterations: int | None = option(
        None,
        "Most Lanczos steps, each of which keeps a vector of the model's size. By default 300, less where they would "
        "take more than 2 GiB, and at least 2k + 20.",
    )
    tolerance: float = option(
        1e-4, "An eigenvalue has converged when its residual is at most this part of it, noise of the products aside."
    )
    probes: int = option(4, "Random probes for the trace and the spectral density; 0 leaves both out.")
    density_iterations: int = option(12, "Lanczos steps from every probe: nodes of the spectral density.")
    hvp: HVPMethod = option(HVPMethod.AUTO, "Hessian-vector product, as for the score.")
    displacement: float | None = option(None, "Norm of the displacement of a finite difference. By default controlled.")
    max_examples: int | None = option(
        None, "Use at most this many examples: a seeded random subset of a dataset, the first of any other data."
    )
    keep_vectors: bool = option(False, "Return the eigenvectors as well, k vectors of the model's size.")
    seed: int = option(0, "Seed of the start vectors, the probes and the subset.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "which", choice(SpectrumEnd, self.which, "which"))
        object.__setattr__(self, "hvp", choice(HVPMethod, self.hvp, "hvp"))
        check_number(self, "tolerance", minimum=0, strict=True)
        for name in ("iterations", "max_examples"):
            if getattr(self, name) is not None:
                check_number(self, name, minimum=1, integer=True)
        check_flag(self, "keep_vectors")
        check_number(self, "density_iterations", minimum=1, integer=True)
        for name in ("probes", "seed"):
            check_number(self, name, minimum=0, integer=True)
        if self.displacement is not None:
            check_number(self, "displacement", minimum=0, strict=True)
