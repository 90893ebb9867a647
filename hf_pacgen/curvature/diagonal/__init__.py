"""Estimates of the Hessian's diagonal: Hutchinson, Gauss-Newton-Bartlett, their blend, and exact."""

from hf_pacgen.curvature.diagonal.estimate import estimate_diagonal
from hf_pacgen.results.diagonal import DiagonalEstimate

__all__ = ["DiagonalEstimate", "estimate_diagonal"]
