"""TrainingArguments with noise and scores."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from transformers import TrainingArguments

from hf_pacgen.config import NoiseConfig, ScoreConfig
from hf_pacgen.config.settings import Config

__all__ = ["PACGenTrainingArguments", "as_config"]

C = TypeVar("C", bound=Config)


@dataclass
class PACGenTrainingArguments(TrainingArguments):
    """Arguments of :class:`~hf_pacgen.training.trainer.PACGenTrainer`, for code, ``HfArgumentParser`` and JSON files.

    Attributes:
        noise: settings of :class:`NoiseConfig` as a dictionary, a JSON object, or the name of a JSON file.
        score: settings of :class:`ScoreConfig` in the same forms.

    Raises:
        ValueError: an unknown setting, or one that does not fit; the message names it.

    >>> PACGenTrainingArguments("out", noise='{"eta": 1000}', report_to="none").noise["eta"]
    1000.0
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [  # type: ignore[misc]  # the base has no ClassVar
        *TrainingArguments._VALID_DICT_FIELDS,
        "noise",
        "score",
    ]

    noise: dict | str | None = field(  # type: ignore[type-arg]  # the form that HfArgumentParser understands
        default=None,
        metadata={"help": "Train with noise: the settings of NoiseConfig as JSON ('{}' for the defaults) or a file."},
    )
    score: dict | str | None = field(  # type: ignore[type-arg]
        default=None,
        metadata={
            "help": "Score every evaluation: the settings of ScoreConfig as JSON ('{}' for the defaults) or a file."
        },
    )

    def __post_init__(self) -> None:
        # before the base reads JSON, whose errors would not name the setting
        noise, score = self.noise_config, self.score_config
        self.noise = None if noise is None else noise.to_dict()
        self.score = None if score is None else score.to_dict()
        super().__post_init__()

    @property
    def noise_config(self) -> NoiseConfig | None:
        """The settings of the noise, None without."""
        return as_config(NoiseConfig, self.noise, "noise")

    @property
    def score_config(self) -> ScoreConfig | None:
        """The settings of the score, None without."""
        return as_config(ScoreConfig, self.score, "score")


def as_config(kind: type[C], value: Any, name: str) -> C | None:
    """Settings from an object of their class, a dictionary, a JSON object or the name of a JSON file.

    Raises:
        ValueError: it is none of these, or has an unknown or unfit setting.
    """
    if value is None or isinstance(value, kind):
        return value
    if isinstance(value, str):
        is_json = value.lstrip().startswith("{")
        if not is_json and not os.path.isfile(value):
            raise ValueError(f"{name} must be a JSON object or the name of a JSON file; there is no file {value!r}.")
        try:
            value = json.loads(value if is_json else Path(value).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{name} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a {kind.__name__} or a dictionary of its settings; got {value!r}.")
    return kind.from_dict(value)
