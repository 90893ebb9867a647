"""Settings of the noise: what is refused, and what they are stored as."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy
import pytest

from hf_pacgen.config import NoiseConfig

BAD: list[tuple[dict[str, Any], str]] = [
    ({"distribution": "cauchy"}, "distribution must be one of 'uniform'"),
    ({"distribution": "normal"}, "distribution='normal' leaves the box N_i in which the theory holds; use 'truncated"),
    (
        {"shape": "round"},
        "shape must be one of 'pacgen', 'article', 'magnitude', 'isotropic', 'box', 'rows'; got 'round'",
    ),
    ({"curvature": "guess"}, "curvature must be one of 'price', 'adam', 'hutchinson'; got 'guess'"),
    ({"draw": "epoch"}, "draw must be one of 'micro_batch', 'step'; got 'epoch'"),
    ({"eta": 0}, "eta must be a positive number, or 'n' for the number of training examples; got 0"),
    ({"eta": "many"}, "eta must be a positive number"),
    ({"eta": math.inf}, "eta must be a positive number"),
    ({"gamma": -0.1}, "gamma must be a finite number of at least 0; got -0.1"),
    ({"epsilon": math.nan}, "epsilon must be a finite number of at least 0; got nan"),
    ({"warmup_ratio": -0.5}, "warmup_ratio must be a finite number of at least 0; got -0.5"),
    ({"decay_ratio": "0.5"}, "decay_ratio must be a finite number of at least 0"),
    ({"warmup_ratio": 0.6, "decay_ratio": 0.5}, "warmup_ratio + decay_ratio must be at most 1"),
    ({"scale": -1}, "scale must be a finite number of at least 0; got -1"),
    ({"scale": math.inf}, "scale must be a finite number"),
    ({"shape": "isotropic", "scale": 0.2}, "The noise is larger than the box N_i = gamma*|w_i| + epsilon: shape='iso"),
    ({"shape": "isotropic", "scale": 0.2}, "needs epsilon of at least 0.2; got 0.1. Lower scale, or raise epsilon."),
    ({"shape": "magnitude", "scale": 0.2}, "needs gamma of at least 0.2; got 0.1. Lower scale, or raise gamma."),
    ({"epsilon": 1e300}, "epsilon must be a finite number of at least 0 and at most 1e+30; got 1e+300"),
    ({"gamma": 10**400}, "gamma must be a finite number of at least 0"),
    ({"eta": 10**400}, "eta must be a positive number"),
    ({"antithetic": "false"}, "antithetic must be True or False; got 'false'"),
    ({"antithetic": 1}, "antithetic must be True or False; got 1"),
    ({"distribution": "cauchy"}, "distribution must be one of 'uniform', 'truncated_normal'; got 'cauchy'"),
    ({"rho": "guess"}, "rho must be a number >= 0 or 'estimate'; got 'guess'"),
    ({"rho": -1}, "rho must be a finite number of at least 0; got -1"),
    ({"curvature_decay": 0}, "curvature_decay must be a finite number greater than 0; got 0"),
    ({"curvature_decay": 1.1}, "curvature_decay must be at most 1 (a plain mean); got 1.1"),
    ({"curvature_every": 0}, "curvature_every must be an integer of at least 1; got 0"),
    ({"rho_every": 2.5}, "rho_every must be an integer of at least 1; got 2.5"),
    ({"seed": -1}, "seed must be an integer of at least 0; got -1"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        NoiseConfig(**settings)


def test_noise_as_large_as_the_box_is_allowed() -> None:
    assert NoiseConfig(shape="isotropic", scale=0.1).scale == 0.1  # type: ignore[arg-type]
    assert NoiseConfig(shape="magnitude", scale=0.1, epsilon=0).scale == 0.1  # type: ignore[arg-type]


def test_settings_survive_a_dictionary_and_json() -> None:
    config = NoiseConfig(shape="article", rho="estimate", antithetic=True)  # type: ignore[arg-type]
    assert NoiseConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_numbers_of_numpy_are_numbers() -> None:
    config = NoiseConfig(gamma=numpy.float32(0.5), seed=numpy.int64(3), curvature_every=numpy.int32(2))  # type: ignore[arg-type]
    assert config == NoiseConfig(gamma=0.5, seed=3, curvature_every=2)
    assert json.loads(json.dumps(config.to_dict()))["seed"] == 3
