"""How far confidences can be trusted: calibration errors, proper scores, and what abstaining would buy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray
from scipy import stats

__all__ = [
    "BINS",
    "Reliability",
    "adaptive_calibration_error",
    "area_under_risk_coverage",
    "expected_calibration_error",
    "reliability",
]

BINS = 15
Floats = NDArray[numpy.float64]


@dataclass(frozen=True, eq=False)
class Reliability:
    """The bins of a reliability diagram, without the empty ones.

    Attributes:
        confidence, accuracy: means within each bin.
        count: examples in each.
        edges: of all bins, the empty ones too.
    """

    confidence: Floats
    accuracy: Floats
    count: NDArray[numpy.int64]
    edges: Floats

    @property
    def error(self) -> float:
        """Σ_b n_b/n |accuracy_b - confidence_b|."""
        return float((self.count * abs(self.accuracy - self.confidence)).sum() / self.count.sum())


def reliability(confidence: Any, correct: Any, *, bins: int = BINS, adaptive: bool = False) -> Reliability:
    """Mean confidence and accuracy by confidence: in bins of equal width over [0, 1], or, ``adaptive``, of equal count.

    Examples of one confidence share a bin; a confidence at an edge belongs to the bin above.

    Args:
        confidence: the probabilities that the predictions are right, (examples,), in [0, 1].
        correct: whether they are, (examples,).

    Raises:
        ValueError: no examples, other shapes, a confidence outside [0, 1], or fewer than one bin.
    """
    conf, right = _checked(confidence, correct)
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}.")
    edges = numpy.linspace(0, 1, bins + 1)
    if adaptive:
        # where many examples have one confidence, edges fall together, and there are fewer bins
        ordered = numpy.sort(conf)
        inner = ordered[numpy.arange(1, bins) * len(conf) // bins]
        edges = numpy.unique(numpy.concatenate([[0.0], inner, [1.0]]))
    count, _, where = stats.binned_statistic(conf, conf, "count", bins=edges)
    filled = count > 0
    sums = [numpy.bincount(where - 1, weights=values, minlength=len(count))[filled] for values in (conf, right)]
    kept = count[filled]
    return Reliability(sums[0] / kept, sums[1] / kept, kept.astype(numpy.int64), edges)


def expected_calibration_error(confidence: Any, correct: Any, *, bins: int = BINS) -> float:
    """ECE = Σ_b n_b/n |accuracy_b - confidence_b|, over bins of equal width of the confidence.

    Source: Naeini, Cooper, Hauskrecht 2015; Guo et al. 2017, arXiv 1706.04599 (15 bins).

    >>> round(expected_calibration_error([0.9, 0.9, 0.6, 0.6], [1, 1, 1, 0]), 6)
    0.1
    """
    return reliability(confidence, correct, bins=bins).error


def adaptive_calibration_error(confidence: Any, correct: Any, *, bins: int = BINS) -> float:
    """The same over bins that hold equally many examples, which no empty region of the confidence thins out.

    Source: Nguyen and O'Connor 2015, arXiv 1508.05154, of the largest probability.
    """
    return reliability(confidence, correct, bins=bins, adaptive=True).error


def area_under_risk_coverage(confidence: Any, correct: Any) -> float:
    """AURC = 1/n Σ_k (errors among the k most confident)/k, the mean error over all shares that could be answered.

    Among equal confidences the errors are spread evenly, so that the order of the examples does not matter.

    Source: Geifman, Uziel, El-Yaniv 2019, arXiv 1805.08206.

    >>> area_under_risk_coverage([0.9, 0.8], [1, 0])
    0.25
    """
    conf, right = _checked(confidence, correct)
    _, group = numpy.unique(-conf, return_inverse=True)
    wrong = numpy.bincount(group, weights=1 - right) / numpy.bincount(group)
    order = numpy.sort(group)
    return float((wrong[order].cumsum() / numpy.arange(1, len(conf) + 1)).mean())


def _checked(confidence: Any, correct: Any) -> tuple[Floats, Floats]:
    conf, right = numpy.asarray(confidence, dtype=numpy.float64), numpy.asarray(correct, dtype=numpy.float64)
    if conf.ndim != 1 or conf.shape != right.shape or not len(conf):
        raise ValueError(
            f"Calibration needs confidences and whether each prediction is right, both (examples,) and not empty; got "
            f"shapes {conf.shape} and {right.shape}."
        )
    # a sum of rounded probabilities may be a little above 1
    outside = conf[~((conf >= 0) & (conf <= 1 + 1e-6))]
    if len(outside):
        raise ValueError(
            f"Confidences must lie in [0, 1]; got {outside[0]:g}. Give probabilities, not logits; of an answer "
            "without finite logits there is none."
        )
    return conf.clip(0, 1), right
