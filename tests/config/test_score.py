"""Settings of the score: what they refuse, and that they survive a dictionary."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hf_pacgen import ScoreConfig
from hf_pacgen.config import Estimator
from hf_pacgen.maths.score import EpsilonScale

BAD: list[tuple[dict[str, Any], str]] = [
    ({"gamma": -0.1}, "gamma must be a finite number of at least 0; got -0.1"),
    ({"epsilon": -1}, "epsilon must be a finite number of at least 0"),
    ({"gamma": math.nan}, "gamma must be a finite number"),
    ({"gamma": "0.1"}, "gamma must be a finite number"),
    ({"gamma": 0, "epsilon": 0}, "gamma and epsilon are both 0"),
    ({"epsilon_scale": "percent"}, "epsilon_scale must be one of 'absolute', 'rms'; got 'percent'"),
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
    ({"likelihood": "softmax", "estimator": "exact"}, "likelihood='softmax' was given together with estimator='exact'"),
    ({"likelihood": "poisson"}, "likelihood must be one of 'softmax', 'bernoulli', 'gaussian', 'spans'; got 'poisson'"),
    ({"rho": 1.0}, "rho=1.0 was given together with lipschitz_directions=4"),
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


def test_the_settings_of_the_article_are_one_word_away() -> None:
    article = ScoreConfig.article()
    assert (article.gamma, article.epsilon, article.epsilon_scale) == (0.1, 0.1, EpsilonScale.ABSOLUTE)
    # all else is as in this release, and may be given, ε too
    changed = ScoreConfig.article(max_examples=5, epsilon=0.03)
    assert changed == ScoreConfig(gamma=0.1, epsilon=0.03, epsilon_scale="absolute", max_examples=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'etta'"):
        ScoreConfig.article(etta=1)


def test_the_article_does_not_follow_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(ScoreConfig):
        def __init__(self, *, gamma: float = 0.2, epsilon: float = 0.3, epsilon_scale: str = "rms") -> None:
            super().__init__(gamma=gamma, epsilon=epsilon, epsilon_scale=epsilon_scale)

    later = Later.article()
    assert (later.gamma, later.epsilon, later.epsilon_scale) == (0.1, 0.1, "absolute") != (Later().gamma, 0.3, "rms")


def test_what_epsilon_is_measured_in_is_a_word() -> None:
    config = ScoreConfig(epsilon_scale="rms")
    assert config.epsilon_scale is EpsilonScale.RMS and config.to_dict()["epsilon_scale"] == "rms"
    assert ScoreConfig.from_dict(config.to_dict()) == config
    # settings of release 0.1 do not have it, and were absolute
    assert ScoreConfig.from_dict({"gamma": 0.1, "epsilon": 0.1}).epsilon_scale is EpsilonScale.ABSOLUTE


def test_passes_are_as_many_as_it_takes_unless_given() -> None:
    assert ScoreConfig().passes is None and ScoreConfig(passes=3).passes == 3
    assert ScoreConfig.from_dict(ScoreConfig().to_dict()).passes is None
