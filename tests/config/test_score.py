"""Settings of the score: what they refuse, and that they survive a dictionary."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hf_pacgen import ScoreConfig
from hf_pacgen.config import Estimator

BAD: list[tuple[dict[str, Any], str]] = [
    ({"gamma": -0.1}, "gamma must be a finite number of at least 0; got -0.1"),
    ({"epsilon": -1}, "epsilon must be a finite number of at least 0"),
    ({"gamma": math.nan}, "gamma must be a finite number"),
    ({"gamma": "0.1"}, "gamma must be a finite number"),
    ({"gamma": 0, "epsilon": 0}, "gamma and epsilon are both 0"),
    ({"eta": 0}, "eta must be a positive number, or 'n'"),
    ({"eta": "many"}, "eta must be a positive number"),
    ({"eta": True}, "eta must be a positive number"),
    ({"estimator": "guess"}, "estimator must be one of 'blend', 'hutchinson', 'gauss_newton', 'exact'; got 'guess'"),
    ({"hvp": "guess"}, "hvp must be one of 'auto'"),
    ({"passes": 0}, "passes must be an integer of at least 1; got 0"),
    ({"passes": 1.5}, "passes must be an integer"),
    ({"passes": True}, "passes must be an integer"),
    ({"lipschitz_directions": -1}, "lipschitz_directions must be an integer of at least 0"),
    ({"lipschitz_iterations": 0}, "lipschitz_iterations must be an integer of at least 1"),
    ({"lipschitz_batches": 0}, "lipschitz_batches must be an integer of at least 1"),
    ({"max_examples": 0}, "max_examples must be an integer of at least 1"),
    ({"num_training_examples": -3}, "num_training_examples must be an integer of at least 1"),
    ({"displacement": 0}, "displacement must be a finite number greater than 0"),
    ({"standard_error": 1}, "standard_error must be True or False; got 1"),
    ({"seed": -1}, "seed must be an integer of at least 0"),
    ({"rho": 1.0}, "rho=1.0 was given together with lipschitz_directions=2"),
]


@pytest.mark.parametrize("settings, message", BAD)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        ScoreConfig(**settings)


def test_settings_survive_a_dictionary() -> None:
    config = ScoreConfig(estimator="exact", eta=3, max_examples=5)  # type: ignore[arg-type]
    assert ScoreConfig.from_dict(config.to_dict()) == config and config.estimator is Estimator.EXACT
    with pytest.raises(ValueError, match="ScoreConfig has no setting 'etta'; it has displacement, epsilon"):
        ScoreConfig.from_dict({"etta": 1})
