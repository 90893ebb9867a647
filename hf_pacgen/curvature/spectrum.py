"""The spectrum of the Hessian: extreme eigenvalues, trace and spectral density.

Lanczos with full reorthogonalization (eigenvalues) and stochastic Lanczos quadrature (trace and density: Ubaru, Chen,
Saad 2017; Ghorbani, Krishnan, Xiao 2019), on products with the Hessian of the mean loss over the whole data.
It differs from the usual in two ways:

1. Residuals are those of the products as computed, their noise included, and cost none: see :class:`Krylov`.
2. Probes are kept orthogonal to the Krylov space of the eigenvalues, on which trace and density are known.  So the
   outliers of the spectrum on both sides, which make most of a plain probe's variance, are counted and only the bulk
   is sampled (the idea of Hutch++, Meyer et al. 2021).  The two parts are coupled by a single number, β of the last
   step, which the density leaves out and which the trace does not feel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_pacgen.config import SpectrumConfig
from hf_pacgen.curvature.hvp import HessianProduct
from hf_pacgen.curvature.operators import MeanHessian, Tick
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.maths.lanczos import Basis, Krylov, lanczos
from hf_pacgen.results.spectrum import Spectrum

__all__ = ["MOST_ITERATIONS", "BASIS_BYTES", "FLOOR", "NOISY", "PATIENCE", "estimate_spectrum"]

MOST_ITERATIONS = 300


BASIS_BYTES = 2 << 30
"""Of the Lanczos basis, by default, where it does not cut the steps below 2k + 20."""


FLOOR = 1e-3
"""Eigenvalues below this part of the largest in magnitude are judged as if they were that large."""


NOISY = 0.02
"""Noise of the products, as part of the largest eigenvalue, that is worth saying."""


PATIENCE = 10
"""Steps after a restart in which a second copy of a top eigenvalue shows."""


def estimate_spectrum(space: WeightSpace, config: SpectrumConfig, *, k: int, tick: Tick = lambda: None) -> Spectrum:
    """The spectrum of an inspected objective's Hessian.

    Every process runs the same Lanczos process on products that are summed over all of them.

    Args:
        space: the weights, which are left as found.
        config: settings.
        k: how many eigenvalues.
        tick: called after every batch.

    Raises:
        ValueError: a product is not finite.
    """
    hessian = MeanHessian(HessianProduct(space, config.hvp, displacement=config.displacement), tick)
    try:
        return _spectrum(space, hessian, config, k)
    except FloatingPointError as error:
        raise ValueError(
            "The product of the Hessian with a vector is not finite. Look at the data and the weights, or use "
            "wider weights (float32 instead of float16)."
        ) from error


def _spectrum(space: WeightSpace, hessian: MeanHessian, config: SpectrumConfig, k: int) -> Spectrum:
    m = space.num_parameters
    wanted = min(k, m)
    most = min(m, config.iterations or _most_iterations(space, k))
    search = _Search(config, wanted, m)
    start = space.gaussian(config.seed, "lanczos", 0)
    krylov = lanczos(
        lambda vector, out: hessian @ vector,
        start,
        basis=Basis(start, space),
        iterations=most,
        dimension=m,
        fresh=lambda number: space.gaussian(config.seed, "lanczos", number),
        stop=search.finished,
    )
    basis: Basis = krylov.basis  # type: ignore[assignment]
    values, vectors = krylov.pairs()
    chosen = search.top(values)
    remaining, noise = krylov.residuals(vectors)
    complete = len(basis) == m
    converged = search.converged(krylov, chosen)
    nodes, weights = values.tolist(), [1 / m] * m
    trace: float | None = values.sum().item()
    stderr: float | None = 0.0
    if not complete:
        sample = _sample(space, hessian, config, basis) if config.probes else None
        if sample is None:
            nodes, weights, trace, stderr = [], [], None, None
        else:
            nodes, weights, trace, stderr = sample.merge(values, m)
            converged &= ~search.missed(values[chosen], sample, noise.max().item())
    residuals = (remaining[chosen].square() + noise[chosen].square()).sqrt()
    return Spectrum(
        eigenvalues=tuple(values[chosen].tolist()),
        residuals=tuple(residuals.tolist()),
        converged=tuple(converged.tolist()),
        trace=trace,
        trace_stderr=stderr,
        nodes=tuple(nodes),
        weights=tuple(weights),
        eigenvectors=tuple(map(basis.combine, vectors[:, chosen].t())) if config.keep_vectors else None,
        num_parameters=m,
        num_examples=hessian.examples,
        num_units=hessian.units,
        iterations=len(basis),
        probes=0 if complete else config.probes,
        num_hvps=hessian.batches_of_all(),
        hvp_method=hessian.product.method.value,
        status=tuple(_status(k, m, len(basis), converged, noise[chosen], values, stderr, trace)),
        config=config.to_dict(),
    )


class _Search:
    """Which Ritz values are wanted, and when they are good enough."""

    def __init__(self, config: SpectrumConfig, wanted: int, dimension: int) -> None:
        self.config, self.wanted, self.dimension = config, wanted, dimension
        self.settled: Tensor | None = None
        """The top ones when the Krylov space was last exhausted."""
        self.restarted = 0

    def top(self, values: Tensor) -> Tensor:
        """Indices of the wanted ones, best first."""
        return self.config.which.facts(values).argsort(descending=True)[: self.wanted]

    def _limit(self, values: Tensor, chosen: Tensor) -> Tensor:
        return self.config.tolerance * values[chosen].abs().clamp_min(FLOOR * values.abs().max().item())

    def converged(self, krylov: Krylov, chosen: Tensor) -> Tensor:
        """Whether more steps would hardly change each of them."""
        values, vectors = krylov.pairs()
        remaining, _ = krylov.residuals(vectors)
        return remaining[chosen] <= self._limit(values, chosen)

    def finished(self, krylov: Krylov, exhausted: bool) -> bool:
        """Whether all have converged, and a space that was exhausted hides no second copies of them."""
        steps = len(krylov.basis)
        if steps < self.wanted or not (exhausted or steps <= 20 or steps % 5 == 0):
            return False
        values, vectors = krylov.pairs()
        chosen = self.top(values)
        if not exhausted and not bool(self.converged(krylov, chosen).all()):
            return False
        before = self.settled
        if before is None and not exhausted:
            return True
        if not exhausted and steps < self.restarted + PATIENCE:
            return False
        self.settled, self.restarted = values[chosen], steps
        _, noise = krylov.residuals(vectors)
        slack = 1e-6 * values.abs().max().item() + 3 * noise.max().item()
        return before is not None and torch.allclose(before, self.settled, rtol=0, atol=slack)

    def missed(self, found: Tensor, sample: _Sample, noise: float) -> Tensor:
        """Which of the eigenvalues found are worse than one that a probe, kept orthogonal to all, has met."""
        merit = self.config.which.facts
        best = merit(torch.cat(sample.nodes)).max()
        slack = 1e-3 * merit(found).abs().max() + 3 * noise
        return merit(found) < best - slack


@dataclass
class _Sample:
    """A Gauss quadrature of every probe, on the complement of the Krylov space; weights sum to 1."""

    nodes: list[Tensor]
    weights: list[Tensor]

    def merge(self, found: Tensor, m: int) -> tuple[list[float], list[float], float, float | None]:
        """Nodes and weights of the whole density, the trace, and its standard error.

        For u uniform on the unit sphere of a space of dimension d, E uᵀHu is the trace on that space over d.
        """
        rest = m - len(found)
        forms = rest * torch.stack([n @ w for n, w in zip(self.nodes, self.weights, strict=True)])
        stderr = float(forms.std() / math.sqrt(len(forms))) if len(forms) > 1 else None
        nodes = [*found.tolist(), *torch.cat(self.nodes).tolist()]
        weights = [*[1 / m] * len(found), *(torch.cat(self.weights) * rest / m / len(forms)).tolist()]
        return nodes, weights, float(found.sum() + forms.mean()), stderr


def _sample(space: WeightSpace, hessian: MeanHessian, config: SpectrumConfig, kept: Basis) -> _Sample:
    sample = _Sample([], [])
    for probe in range(config.probes):
        start = space.gaussian(config.seed, "lanczos", -1 - probe)
        krylov = lanczos(
            lambda vector, out: hessian @ vector,
            start,
            basis=Basis(start, space),
            iterations=config.density_iterations,
            dimension=space.num_parameters - len(kept),
            deflated=kept,
        )
        values, vectors = krylov.pairs()
        sample.nodes.append(values)
        sample.weights.append(vectors[0].square())
    return sample


def _most_iterations(space: WeightSpace, k: int) -> int:
    size = sum(w.numel() * max(w.element_size(), 4) for w in space.weights.values())
    return max(2 * k + 20, min(MOST_ITERATIONS, BASIS_BYTES // size))


def _status(
    k: int,
    m: int,
    steps: int,
    converged: Tensor,
    noise: Tensor,
    values: Tensor,
    stderr: float | None,
    trace: float | None,
) -> list[str]:
    """Sentences on what limits the numbers."""
    said = []
    if k > m:
        said.append(f"There are fewer parameters than eigenvalues asked for: {m} and {k}.")
    elif len(converged) < k:
        said.append(f"{steps} Lanczos steps give {len(converged)} eigenvalues and not {k}. Use more iterations.")
    if not bool(converged.all()):
        said.append(
            f"{int((~converged).sum())} of {len(converged)} eigenvalues did not converge in {steps} Lanczos steps: "
            "they are bounds from inside, and may have missed others. Use more iterations, or a larger tolerance."
        )
    scale = values.abs().max().item()
    if scale and noise.max().item() > NOISY * scale:
        said.append(
            f"The Hessian-vector products are noisy: {noise.max().item() / scale:.1%} of the largest eigenvalue. "
            "Load the weights in float32 or float64."
        )
    if stderr is not None and trace is not None and stderr > 0.5 * abs(trace):
        said.append(f"The trace is noisy: {trace:.4g} ± {stderr:.2g}. Use more probes.")
    return said
