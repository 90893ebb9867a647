"""Settings of a promise."""

from __future__ import annotations

from typing import Any

import pytest

from hf_pacgen.config.promise import PromiseConfig
from hf_pacgen.maths.bounded_losses import PromisedLoss


def test_settings_are_kept_as_plain_values() -> None:
    config = PromiseConfig(loss="brier", delta=0.1, max_error=0.2)  # type: ignore[arg-type]
    assert config.loss is PromisedLoss.BRIER
    assert config.to_dict() | {"loss": "brier", "delta": 0.1, "max_error": 0.2} == config.to_dict()
    assert PromiseConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delta": 0}, "delta must be a finite number greater than 0"),
        ({"delta": 1.0}, r"delta must be in \(0, 1\), a probability such as 0.05; got 1.0"),
        ({"delta": float("nan")}, "delta must be a finite number"),
        ({"max_error": 5}, r"max_error must be in \(0, 1\)"),
        ({"coverage": 95}, r"coverage must be in \(0, 1\)"),
        ({"coverage": 0.9, "max_error": 0.1}, "max_error and coverage are two promises"),
        ({"candidates": True}, "candidates must be an integer"),
        ({"loss": "loss"}, "loss must be one of 'zero_one'"),
        ({"seed": 2**64}, r"seed must be an integer of at least 0 and less than 2\*\*64"),
    ],
)
def test_what_is_no_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromiseConfig(**settings)
