"""Thresholds with a guarantee hold it, and are those of their definitions."""

from __future__ import annotations

import math

import numpy
import pytest
from promised import DELTA, DRAWS, LEAST, MOST
from scipy.stats import binom

from hf_pacgen.maths.selective import (
    fewest_examples,
    first_coverage,
    fixed_sequence,
    set_threshold,
    thresholds_at,
)


def test_thresholds_reach_the_share_they_name() -> None:
    rng = numpy.random.default_rng(0)
    reference = rng.random(137)
    thresholds = thresholds_at(reference)
    shares = [float((reference >= t).mean()) for t in thresholds]
    assert len(thresholds) == 20 and thresholds == sorted(thresholds, reverse=True)
    assert all(0 <= share - i / 20 < 1 / 137 for i, share in enumerate(shares, start=1))
    assert thresholds_at([*reference, math.nan]) == thresholds
    assert thresholds_at(numpy.arange(20) / 20)[2] == 0.85  # 0.15 of 20 are three
    with pytest.raises(ValueError, match=r"Thresholds are made of confidences, and there are none. Give training data"):
        thresholds_at([math.nan])


def test_where_the_sequence_begins() -> None:
    assert fewest_examples(0.05, 0.05) == pytest.approx(2 * math.log(0.05) / math.log(0.95))
    for count in (116, 117, 234, 500, 12_000):
        expected = next((i for i in range(1, 21) if count * 0.05 * i >= fewest_examples(0.05, 0.05)), None)
        assert first_coverage(count, 0.05, 0.05) == expected
    assert first_coverage(116, 0.05, 0.05) is None and first_coverage(117, 0.05, 0.05) == 20


def test_a_sequence_goes_on_while_the_tail_is_small() -> None:
    rng = numpy.random.default_rng(1)
    confidences = rng.random(2000)
    wrong = (rng.random(2000) < (1 - confidences) / 2).astype(float)
    thresholds = thresholds_at(rng.random(500))
    passed, tested = fixed_sequence(thresholds, confidences, wrong, target=0.1, delta=0.05, start=3)
    assert passed is not None and tested[0].coverage == 0.15 and tested[-2] is passed
    for step in tested:
        answered = confidences >= step.threshold
        assert (step.answered, step.errors) == (answered.sum(), wrong[answered].sum())
        assert step.tail == pytest.approx(binom.cdf(step.errors, step.answered, 0.1))
        assert (step.tail <= 0.05) == (step is not tested[-1])
    nothing, (first,) = fixed_sequence(thresholds, confidences, numpy.ones(2000), target=0.1, delta=0.05)
    assert nothing is None and first.errors == first.answered
    _, (empty,) = fixed_sequence([2.0], confidences, wrong, target=0.1, delta=0.05)
    assert empty.answered == 0 and empty.tail == 1.0  # nothing answered is no evidence


def test_sets_leave_out_as_many_labels_as_the_binomial_allows() -> None:
    rng = numpy.random.default_rng(2)
    chances = rng.random(300)
    threshold = set_threshold(chances, coverage=0.9, delta=0.05)
    assert threshold is not None
    missed = (chances < threshold).sum()
    assert binom.cdf(missed, 300, 0.1) <= 0.05 < binom.cdf(missed + 1, 300, 0.1)
    # the fewest examples from which anything can be said
    assert set_threshold(chances[:29], coverage=0.9, delta=0.05) == chances[:29].min()
    assert 0.9**29 <= 0.05 < 0.9**28 and set_threshold(chances[:28], coverage=0.9, delta=0.05) is None


def test_sets_cover_as_often_as_they_say() -> None:
    rng = numpy.random.default_rng(3)
    failed = [set_threshold(rng.random(100), coverage=0.9, delta=DELTA) for _ in range(DRAWS)]
    rate = float(numpy.mean([threshold is not None and threshold > 0.1 for threshold in failed]))
    assert LEAST <= rate <= MOST
    # the marginal conformal quantile covers 0.9 on average over the draws, and fails about half of the time
    marginal = [numpy.sort(rng.random(100))[math.floor(101 * 0.1) - 1] > 0.1 for _ in range(DRAWS)]
    assert numpy.mean(marginal) > MOST


def test_a_sequence_errs_as_seldom_as_it_says() -> None:
    """Errors fall with the confidence c as (1 - c)/2, so that those above τ are (1 - τ)/4; a picked threshold fails."""
    rng = numpy.random.default_rng(4)
    target, failures, picked = 0.1, [], []
    for _ in range(DRAWS):
        confidences = rng.random(200)
        wrong = (rng.random(200) < (1 - confidences) / 2).astype(float)
        thresholds = thresholds_at(rng.random(400))
        start = first_coverage(200, target, DELTA)
        assert start is not None
        passed, _ = fixed_sequence(thresholds, confidences, wrong, target=target, delta=DELTA, start=start)
        failures.append(passed is not None and (1 - passed.threshold) / 4 > target)
        empirical = [t for t in thresholds if wrong[confidences >= t].mean() <= target]
        picked.append(bool(empirical) and (1 - empirical[-1]) / 4 > target)
    assert LEAST <= float(numpy.mean(failures)) <= MOST
    assert numpy.mean(picked) > MOST
