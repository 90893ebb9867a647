"""Settings of noisy predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from hf_pacgen.config.settings import SUBSET, Config, Count, Seed, number, option

AUTO = "auto"


def _size(value: Any, name: str) -> str | float:
    if value == AUTO:
        return AUTO
    if isinstance(value, str):  # a word of the command line
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{name} must be a number of at least 0, or 'auto'; got {value!r}.") from None
    found: float = number(value, name, minimum=0)
    return found


# a parser of arguments sees str, so that "auto" is no error
NoiseSize = Annotated[str, _size]


@dataclass(frozen=True, kw_only=True)
class PredictionConfig(Config):
    """Settings of :func:`hf_pacgen.noisy_predictions`, which takes them by their names.

    >>> PredictionConfig(noise_scale="0.2").to_dict()["noise_scale"]
    0.2
    """

    noise_scale: NoiseSize = option(
        AUTO,
        "Size of the noise, the half-width in units of the root mean square of each row of a weight matrix, 0 for "
        "none; or 'auto', which finds it on the training data.",
    )
    draws: Count = option(8, "Draws of the noise, each of which goes over all of the data once.")
    top_classes: Count | None = option(
        None, "Classes to keep of each prediction. By default all up to 256 classes, and 32 of more."
    )
    max_examples: Count | None = option(None, SUBSET)
    max_training_examples: Count | None = option(
        2000, "Training examples that the size of the noise is found on, at most, drawn at random."
    )
    seed: Seed = option(0, "Seed of the noise, of the subsets, and of what the data draws at random.")
