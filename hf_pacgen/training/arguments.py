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
from hf_pacgen.training.averages import check_decay

C = TypeVar("C", bound=Config)
_HELP = "{}: the settings of {} as JSON ('{{}}' for the defaults){} or a file."


@dataclass
class PACGenTrainingArguments(TrainingArguments):
    """Arguments of :class:`~hf_pacgen.training.trainer.PACGenTrainer`, for code, ``HfArgumentParser`` and JSON files.

    ``noise`` and ``score`` are the settings of :class:`NoiseConfig` and :class:`ScoreConfig`: a dictionary, a JSON
    object, or the name of a JSON file; for the noise the name of a recipe, too.  A ValueError names a setting that is
    unknown or does not fit.

    >>> PACGenTrainingArguments("out", noise='{"eta": 1000}', report_to="none").noise["eta"]
    1000.0
    >>> PACGenTrainingArguments("out", noise="rows", report_to="none").noise["shape"]
    'rows'
    """

    # the base has no ClassVar
    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*TrainingArguments._VALID_DICT_FIELDS, "noise", "score"]  # type: ignore[misc]

    # dict without type arguments is the form that HfArgumentParser understands
    noise: dict | str | None = field(
        default=None,
        metadata={"help": _HELP.format("Train with noise", "NoiseConfig", ", the name of a recipe ('rows')")},
    )  # type: ignore[type-arg]
    score: dict | str | None = field(  # type: ignore[type-arg]
        default=None, metadata={"help": _HELP.format("Score every evaluation", "ScoreConfig", "")}
    )

    ema: float | None = field(
        default=None, metadata={"help": "Decay of a moving average of the weights, which is evaluated and saved: 0.99."}
    )
    evaluate_ema: bool = field(
        default=True, metadata={"help": "Evaluate and save the average; otherwise the weights that are trained."}
    )

    def __post_init__(self) -> None:
        # before the base reads JSON, whose errors would not name the setting
        noise, score = self.noise_config, self.score_config
        self.noise = None if noise is None else noise.to_dict()
        self.score = None if score is None else score.to_dict()
        self.ema = check_decay(self.ema)
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
    """Settings from an object of their class, their short name, a dictionary, a JSON object or a JSON file's name."""
    if value is None or isinstance(value, kind):
        return value
    if isinstance(value, str):
        if value in (short := kind.short_names()):
            return short[value]()
        is_json = value.lstrip().startswith("{")
        if not is_json and not os.path.isfile(value):
            known = f"{', '.join(map(repr, short))}, " if short else ""
            raise ValueError(
                f"{name} must be {known}a JSON object or the name of a JSON file; there is no file {value!r}."
            )
        try:
            value = json.loads(value if is_json else Path(value).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{name} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a {kind.__name__} or a dictionary of its settings; got {value!r}.")
    return kind.from_dict(value)
