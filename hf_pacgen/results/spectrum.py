"""What is known of the Hessian's eigenvalues."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_pacgen.results.base import Result
from hf_pacgen.results.fields import origin, other

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Spectrum(Result):
    """What is known of the eigenvalues of ∇²L̂(w), L̂ the mean loss over all loss units of the data."""

    kind, unversioned = "spectrum", True

    eigenvalues: tuple[float, ...] = other("the top k, best first; fewer where there are fewer parameters")
    residuals: tuple[float, ...] = other(
        "‖H y - θ y‖ of each with its unit vector y, for the products as computed: there is an eigenvalue of H within "
        "this distance, up to the bias of finite differences (1e-4 to 1e-3 of it in float32)"
    )
    converged: tuple[bool, ...] = other(
        "whether more Lanczos steps would change it by less than the tolerance; one that has not converged is a bound "
        "from inside of the spectrum, no eigenvalue"
    )
    trace: float | None = other("Σ of all eigenvalues; None without probes", default=None)
    trace_stderr: float | None = other(
        "its standard error: 0 where all were found, None without probes or with a single one", default=None
    )
    nodes: tuple[float, ...] = other(
        "where the spectral density has point masses: Ritz values, and Gauss nodes of probes", default=()
    )
    weights: tuple[float, ...] = other("of the nodes, which sum to 1", default=())
    eigenvectors: tuple[dict[str, Tensor], ...] | None = other(
        "by parameter name, where asked for (keep_vectors)", default=None, written=False
    )
    num_parameters: int = other("m")
    num_examples: int = other("examples in the data")
    num_units: float = other("loss units in the data")
    iterations: int = other("Lanczos steps for the eigenvalues", default=0)
    probes: int = other("probes for trace and density", default=0)
    num_hvps: int = other("Hessian-vector products of a batch, over all processes", default=0)
    hvp_method: str = other("method of the Hessian-vector products")
    status: tuple[str, ...] = other("what limits the numbers, in sentences", default=())
    config: dict[str, Any] = other("the settings", default=dict)
    origin: dict[str, Any] = origin()

    def density(self, points: Tensor, *, bandwidth: float | None = None) -> Tensor:
        """The spectral density (1/m) Σ_i g(t - λ_i) at some points t, shape like ``points``; it integrates to 1.

        Args:
            points: where.
            bandwidth: standard deviation of the Gaussian g; by default 1 % of the range of the nodes.

        Raises:
            ValueError: there are no nodes (``probes=0``), or a bandwidth that is not positive.
        """
        import torch  # only here: a result is read and printed without it

        if not self.nodes:
            raise ValueError("There is no spectral density: it was measured with probes=0. Use at least one probe.")
        width = self.bandwidth if bandwidth is None else bandwidth
        if not (math.isfinite(width) and width > 0):
            raise ValueError(f"bandwidth must be a finite number greater than 0; got {bandwidth!r}.")
        points = points.double()
        nodes, weights = (torch.tensor(v, dtype=torch.float64) for v in (self.nodes, self.weights))
        # in float64, and all nodes at once: there are a few hundred of them
        kernel = torch.exp(-0.5 * ((points[..., None] - nodes) / width).square()) / (width * math.sqrt(2 * math.pi))
        return kernel @ weights

    @property
    def bandwidth(self) -> float:
        """The default of :meth:`density`."""
        # all nodes in one place have no range, and all at 0 no size either
        spread = max(self.nodes) - min(self.nodes)
        return 0.01 * spread or 0.01 * max(map(abs, self.nodes)) or 0.01

    @property
    def largest(self) -> float:
        """λ_max, as far as it was found."""
        return max(self.eigenvalues)
