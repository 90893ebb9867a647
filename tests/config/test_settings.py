"""What all settings share: rules that go with types, help, and dictionaries."""

# ruff: noqa: RUF009
from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, get_type_hints

import numpy
import pytest
from transformers import HfArgumentParser

from hf_pacgen.config import (
    CertificateConfig,
    NoiseConfig,
    RelativeSharpnessConfig,
    ScoreConfig,
    SharpnessConfig,
    SpectrumConfig,
)
from hf_pacgen.config.settings import (
    Config,
    Count,
    Grid,
    Natural,
    NonNegative,
    Positive,
    Seed,
    Temperature,
    choice,
    count,
    natural,
    option,
    seed,
)


class Fruit(str, Enum):
    APPLE = "apple"
    PEAR = "pear"


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    rate: Positive = option(0.1, "A rate.")
    level: NonNegative = option(0.0, "A level.")
    seed: Natural = option(0, "A seed.")
    count: Count | None = option(None, "A number of examples.")
    eta: Temperature = option("n", "η.")
    grid: Grid | None = option(None, "A grid.")
    fruit: Fruit = option(Fruit.APPLE, "A fruit.")
    flag: bool = option(False, "A flag.")
    free: str | None = option(None, "Anything.")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"rate": 0}, "rate must be a finite number greater than 0; got 0"),
        ({"rate": 1e31}, r"rate must be a finite number greater than 0 and at most 1e\+30; got 1e\+31"),
        ({"level": -1}, "level must be a finite number of at least 0; got -1"),
        ({"seed": -1}, "seed must be an integer of at least 0; got -1"),
        ({"seed": None}, "seed must be an integer of at least 0; got None"),
        ({"count": 0}, "count must be an integer of at least 1; got 0"),
        ({"count": True}, "count must be an integer of at least 1; got True"),
        ({"eta": "m"}, "eta must be a positive number, or 'n' for the number of training examples; got 'm'"),
        ({"grid": [1, 0]}, r"grid must be a list of positive, finite numbers; got \[1, 0\]"),
        ({"fruit": "plum"}, "fruit must be one of 'apple', 'pear'; got 'plum'"),
        ({"flag": 1}, "flag must be True or False; got 1"),
    ],
)
def test_each_type_has_its_rule(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Settings(**values)


def test_values_become_pythons_own() -> None:
    given: Any = {"rate": numpy.float32(0.5), "count": numpy.int64(3), "eta": " N", "grid": (2, 1, 2), "fruit": "pear"}
    settings = Settings(**given)
    assert (settings.rate, settings.count, settings.eta, settings.grid) == (0.5, 3, "n", [1.0, 2.0])
    assert type(settings.rate) is float and type(settings.count) is int and settings.fruit is Fruit.PEAR
    assert settings.to_dict()["fruit"] == "pear" and Settings.from_dict(settings.to_dict()) == settings


def test_unknown_settings_are_named() -> None:
    with pytest.raises(ValueError, match="Settings has no setting 'rats'; it has count, eta, flag, free"):
        Settings.from_dict({"rats": 1})


def test_transformers_reads_them() -> None:
    parser = HfArgumentParser(Settings)  # type: ignore[arg-type]
    (settings,) = parser.parse_args_into_dataclasses(
        ["--rate", "2", "--count", "5", "--eta", "30", "--grid", "2", "1", "--fruit", "pear", "--flag"]
    )
    assert settings == Settings(rate=2, count=5, eta=30.0, grid=[1.0, 2.0], fruit=Fruit.PEAR, flag=True)
    assert "A number of examples." in parser.format_help()


def test_checks_of_single_values() -> None:
    assert type(count(numpy.int64(3), "draws")) is int and natural(0, "seed") == 0
    with pytest.raises(ValueError, match="draws must be an integer of at least 1; got 0"):
        count(0, "draws")
    with pytest.raises(ValueError, match="seed must be an integer of at least 0; got -1"):
        natural(-1, "seed")
    with pytest.raises(ValueError, match="f must be one of 'apple'; got 'plum'"):
        choice(Fruit, "plum", "f", without=[Fruit.PEAR])


def test_seeds_are_what_generators_take() -> None:
    assert seed(2**64 - 1, "seed") == 2**64 - 1
    for kind in (CertificateConfig, NoiseConfig, RelativeSharpnessConfig, ScoreConfig, SharpnessConfig, SpectrumConfig):
        assert get_type_hints(kind, include_extras=True)["seed"] == Seed
        with pytest.raises(ValueError, match=r"seed must be an integer of at least 0 and less than 2\*\*64; got 1844"):
            kind(seed=2**64)
