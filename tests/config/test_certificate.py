"""Settings of a certificate: what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from hf_pacgen.config import CertificateConfig, PriorGroups


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"delta": 1.0}, "delta must be less than 1"),
        ({"delta": 0.0}, "delta must be a finite number greater than 0"),
        ({"draws": 0}, "draws must be an integer of at least 1; got 0"),
        ({"bound": "tight"}, "bound must be one of 'kl', 'hoeffding'"),
        ({"distribution": "cauchy"}, "distribution must be one of 'uniform'"),
        ({"prior_groups": "row"}, "prior_groups must be one of 'model', 'kind', 'module'; got 'row'"),
        ({"prior_scales": []}, "prior_scales must be a list of positive, finite numbers"),
        ({"prior_scales": ["a"]}, "prior_scales must be a list of positive, finite numbers"),
        ({"prior_scales": [0.1, -1.0]}, "prior_scales must be a list of positive, finite numbers"),
        ({"etas": [1.0]}, "The kl bound has no eta to search"),
        ({"eta": 0.0}, "eta must be a positive number, or 'n'"),
        ({"refine_steps": -1}, "refine_steps must be an integer of at least 0"),
        ({"max_examples": 0}, "max_examples must be an integer of at least 1"),
        ({"parameters": []}, r"parameters must be patterns of parameter names; got \[\]"),
        ({"distribution": "uniform", "epsilon": 0.0}, "epsilon is 0, so weights of 0 have no noise"),
    ],
)
def test_settings_refuse(settings, match):
    with pytest.raises(ValueError, match=match):
        CertificateConfig(**settings)


def test_one_pattern_is_a_list_of_one():
    given: Any = {"parameters": "head.*", "prior_scales": (2, 1, 2)}
    config = CertificateConfig(**given)
    assert config.parameters == ["head.*"] and config.prior_scales == [1.0, 2.0]


def test_groups_of_weights():
    names = ["encoder.layer.0.dense.weight", "encoder.layer.1.dense.bias", "scale"]
    groups = {kind.value: [kind.facts(name) for name in names] for kind in PriorGroups}
    assert groups == {
        "model": ["all", "all", "all"],
        "kind": ["encoder.layer.dense", "encoder.layer.dense", "scale"],
        "module": ["encoder.layer.0.dense", "encoder.layer.1.dense", "scale"],
    }
