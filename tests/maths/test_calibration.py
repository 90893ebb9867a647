"""Calibration errors and the risk-coverage curve, against numbers by hand and scikit-learn."""

from __future__ import annotations

import numpy
import pytest
from sklearn.calibration import calibration_curve

from hf_pacgen.maths.calibration import (
    adaptive_calibration_error,
    area_under_risk_coverage,
    expected_calibration_error,
    reliability,
)

CONFIDENCE = [0.05, 0.31, 0.35, 0.62, 0.66, 0.97]
CORRECT = [0, 1, 0, 0, 1, 1]


def drawn(count: int, seed: int = 0) -> tuple[numpy.ndarray, numpy.ndarray]:
    draw = numpy.random.default_rng(seed)
    confidence = draw.uniform(0.2, 1, count)
    return confidence, (draw.uniform(size=count) < confidence**1.5).astype(float)


def test_by_hand() -> None:
    # bins of a third: {0.05, 0.31}, {0.35, 0.62, 0.66}, {0.97}; then pairs
    thirds = (abs(0.36 - 1) + abs(1.63 - 1) + abs(0.97 - 1)) / 6
    assert expected_calibration_error(CONFIDENCE, CORRECT, bins=3) == pytest.approx(thirds)
    pairs = (abs(0.36 - 1) + abs(0.97 - 0) + abs(1.63 - 2)) / 6
    assert adaptive_calibration_error(CONFIDENCE, CORRECT, bins=3) == pytest.approx(pairs)
    errors = [0, 0, 1, 2, 2, 3]  # of the most confident first: right, right, wrong, wrong, right, wrong
    assert area_under_risk_coverage(CONFIDENCE, CORRECT) == pytest.approx(
        sum(e / k for k, e in enumerate(errors, start=1)) / 6
    )


def test_the_bins_are_those_of_scikit_learn() -> None:
    confidence, correct = drawn(500)
    bins = reliability(confidence, correct)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15)
    numpy.testing.assert_allclose(bins.accuracy, accuracy)
    numpy.testing.assert_allclose(bins.confidence, mean)
    adaptive = reliability(confidence, correct, adaptive=True)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15, strategy="quantile")
    assert abs(adaptive.accuracy - accuracy).max() < 0.1 and set(adaptive.count) == {33, 34}


def test_extremes() -> None:
    assert expected_calibration_error([1.0, 1.0, 0.0], [1, 1, 0]) == 0
    assert expected_calibration_error([1.0 + 1e-9], [0]) == 1
    assert adaptive_calibration_error([0.7] * 40, [1] * 28 + [0] * 12) == pytest.approx(0)
    assert reliability([0.7] * 40, [1] * 40, adaptive=True).count.tolist() == [40]


def test_equal_confidences_have_no_order() -> None:
    first = area_under_risk_coverage([0.9, 0.5, 0.5], [1, 1, 0])
    assert first == area_under_risk_coverage([0.9, 0.5, 0.5], [1, 0, 1]) == pytest.approx((0 + 0.25 + 1 / 3) / 3)
    confidence, correct = drawn(200)
    order = numpy.random.default_rng(1).permutation(200)
    again = area_under_risk_coverage(confidence[order], correct[order])
    assert area_under_risk_coverage(confidence, correct) == pytest.approx(again)


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([], [], r"both \(examples,\) and not empty; got shapes \(0,\) and \(0,\)"),
        ([0.5], [1, 0], r"got shapes \(1,\) and \(2,\)"),
        ([1.5], [1], r"Confidences must lie in \[0, 1\]; got 1.5"),
        ([numpy.nan], [1], r"got nan"),
    ],
)
def test_what_is_no_confidence_is_refused(confidence: list[float], correct: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        area_under_risk_coverage(confidence, correct)


def test_bins_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="bins must be at least 1; got 0"):
        reliability([0.5], [1], bins=0)
