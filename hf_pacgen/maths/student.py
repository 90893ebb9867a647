"""Standard errors from few repetitions."""

from __future__ import annotations

import math

__all__ = ["interval_stderr"]

NORMAL = 1.959964
"""The 97.5 % quantile of the standard normal distribution."""


def interval_stderr(stderr: float, degrees: int) -> float:
    """A standard error widened so that value ± 1.96 stderr is a 95 % interval, whatever its degrees of freedom.

    The spread of few repetitions is itself a guess; Student's t says how much wider an interval has to be for it.

    Args:
        stderr: from a spread with ``degrees`` ≥ 1 degrees of freedom.
        degrees: one less than the number of repetitions.

    >>> round(interval_stderr(1.0, 3), 2), round(interval_stderr(1.0, 1000), 2)
    (1.61, 1.0)
    """
    if degrees < 1:
        raise ValueError(f"A spread needs at least two repetitions, one degree of freedom; got {degrees}.")
    if degrees == 1:
        return stderr * math.tan(0.475 * math.pi) / NORMAL
    if degrees == 2:
        return stderr * 0.95 * math.sqrt(2 / (1 - 0.95**2)) / NORMAL
    z, v = NORMAL, degrees
    # the quantile in powers of 1/v (Abramowitz and Stegun 26.7.5), within 1 % from three degrees on
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return stderr * (z + terms[0] / v + terms[1] / v**2 + terms[2] / v**3) / z
