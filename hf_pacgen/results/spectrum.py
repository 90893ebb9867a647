"""What is known of the Hessian's eigenvalues."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Spectrum"]


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """What is known of the eigenvalues of ∇²L̂(w), L̂ the mean loss over all loss units of the data.

    Attributes:
        eigenvalues: the top k, best first; fewer where there are fewer parameters.
        residuals: ‖H y - θ y‖ of each with its unit vector y, for the products as computed: there is an eigenvalue
            of H within this distance, but for the bias of finite differences (1e-4 to 1e-3 of it in float32).
        converged: whether more Lanczos steps would change it by less than the tolerance.  One that has not
            converged is a bound from inside of the spectrum, no eigenvalue.
        trace, trace_stderr: Σ of all eigenvalues, and its standard error: 0 where all were found, None without
            probes or with a single one.
        nodes, weights: the spectral density as point masses, which sum to 1: Ritz values and Gauss nodes of probes.
        eigenvectors: by parameter name, where asked for (``keep_vectors``).
        num_parameters, num_examples, num_units: m, and the size of the data.
        iterations, probes: Lanczos steps for the eigenvalues, probes for trace and density.
        num_hvps: Hessian-vector products of a batch, over all processes.
        status: what limits the numbers, in sentences.
        config: the settings.
    """

    eigenvalues: tuple[float, ...]
    residuals: tuple[float, ...]
    converged: tuple[bool, ...]
    trace: float | None
    trace_stderr: float | None
    nodes: tuple[float, ...]
    weights: tuple[float, ...]
    eigenvectors: tuple[dict[str, Tensor], ...] | None
    num_parameters: int
    num_examples: int
    num_units: float
    iterations: int
    probes: int
    num_hvps: int
    hvp_method: str
    status: tuple[str, ...]
    config: dict[str, Any]

    def density(self, points: Tensor, *, bandwidth: float | None = None) -> Tensor:
        """The spectral density (1/m) Σ_i g(t - λ_i) at some points t, shape like ``points``; it integrates to 1.

        Args:
            points: where.
            bandwidth: standard deviation of the Gaussian g; by default 1 % of the range of the nodes.

        Raises:
            ValueError: there are no nodes (``probes=0``), or a bandwidth that is not positive.
        """
        if not self.nodes:
            raise ValueError("There is no spectral density: it was measured with probes=0. Use at least one probe.")
        width = self.bandwidth if bandwidth is None else bandwidth
        if not (math.isfinite(width) and width > 0):
            raise ValueError(f"bandwidth must be a finite number greater than 0; got {bandwidth!r}.")
        points = points.double()
        nodes, weights = (torch.tensor(v, dtype=torch.float64) for v in (self.nodes, self.weights))
        kernel = torch.exp(-0.5 * ((points[..., None] - nodes) / width).square()) / (width * math.sqrt(2 * math.pi))
        return kernel @ weights

    @property
    def bandwidth(self) -> float:
        """The default of :meth:`density`."""
        spread = max(self.nodes) - min(self.nodes)
        return 0.01 * spread or 0.01 * max(map(abs, self.nodes)) or 0.01

    def to_dict(self) -> dict[str, Any]:
        """All but the eigenvectors as JSON-able values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "eigenvectors"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
