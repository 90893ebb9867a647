"""All measures of a solution are those that each function returns by itself."""

from __future__ import annotations

import json
import math

import pytest
import tiny
import torch

from hf_pacgen import SharpnessConfig, SpectrumConfig, expected_sharpness, hessian_spectrum, pacgen
from hf_pacgen.maths.rank_correlation import rank_correlation
from hf_pacgen.measures.comparison import measure_all
from hf_pacgen.measures.landscape import mean_loss
from hf_pacgen.results.measures import MEASURES


def test_all_measures_are_those_of_the_functions() -> None:
    model, data = tiny.make("bert", dtype=torch.float32), tiny.split(tiny.examples("bert", 7), 4, 3)
    test = tiny.split(tiny.examples("bert", 9), 5, 4)
    found = measure_all(
        model,
        data,
        name="a",
        test_data=test,
        noise_scale=0.05,
        sharpness=SharpnessConfig(draws=5),
        progress=False,
    )
    score = pacgen(model, data, progress=False)
    rise = expected_sharpness(model, data, noise_scale=0.05, config=SharpnessConfig(draws=5), progress=False)
    top = hessian_spectrum(model, data, k=1, config=SpectrumConfig(probes=0), progress=False)
    for name in ("score", "kl_complexity", "active_fraction", "kl_active_fraction", "hessian_trace", "loss", "eta"):
        assert getattr(found, name) == getattr(score, name)
    assert (found.expected_sharpness, found.expected_sharpness_stderr) == (rise.mean, rise.stderr)
    assert found.largest_eigenvalue == top.eigenvalues[0] and found.largest_eigenvalue_converged
    assert found.weight_norm == pytest.approx(
        math.sqrt(sum(float((p.detach() ** 2).sum()) for p in model.parameters()))
    )
    assert found.test_loss == mean_loss(model, test, progress=False)
    assert found.gap == pytest.approx((found.test_loss or 0) - found.loss)
    assert set(score.status) <= set(found.status) and set(MEASURES) <= set(json.loads(json.dumps(found.to_dict())))


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 25]) == pytest.approx(0.8)
    assert rank_correlation([1, 1, 2], [5, 5, 9]) == pytest.approx(1) and rank_correlation([3, 1], [1, 3]) == -1
    assert rank_correlation([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(0.9486832980505138)
    assert math.isnan(rank_correlation([1, 1], [1, 2]))
    with pytest.raises(ValueError, match="two sequences of one length of at least 2; got 2 and 3"):
        rank_correlation([1, 2], [1, 2, 3])
