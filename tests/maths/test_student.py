"""The widening of standard errors from few repetitions, against scipy's quantiles."""

from __future__ import annotations

import pytest
from scipy import stats

from hf_pacgen.maths.student import interval_stderr


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 500])
def test_the_interval_is_students(degrees: int) -> None:
    expected = 2 * stats.t.ppf(0.975, degrees) / stats.norm.ppf(0.975)
    assert interval_stderr(2.0, degrees) == pytest.approx(expected, rel=1e-6 if degrees < 3 else 0.01)


def test_a_single_repetition_has_no_spread() -> None:
    with pytest.raises(ValueError, match="at least two repetitions, one degree of freedom; got 0"):
        interval_stderr(1.0, 0)
