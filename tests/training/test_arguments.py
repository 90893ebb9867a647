"""Forms in which settings are given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import HfArgumentParser, TrainingArguments

from hf_pacgen.config import NoiseConfig
from hf_pacgen.training.arguments import PACGenTrainingArguments, as_config
from hf_pacgen.training.callback.callback import PACGenCallback
from hf_pacgen.training.trainer import PACGenTrainer


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"etta": 1}, "NoiseConfig has no setting 'etta'; it has antithetic"),
        ('{"etta": 1}', "NoiseConfig has no setting 'etta'"),
        ("missing.json", "a JSON object or the name of a JSON file; there is no file 'missing.json'"),
        ('{"eta": }', "noise is not valid JSON"),
        (3, "noise must be a NoiseConfig or a dictionary of its settings; got 3"),
        ({"scale": -1}, "scale must be a finite number of at least 0; got -1"),
        ("x" * 400, "a JSON object or the name of a JSON file; there is no file 'xxx"),
    ],
)
def test_bad_forms_are_refused_everywhere(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PACGenCallback(noise=value)
    with pytest.raises(ValueError, match=re.escape(message)):
        PACGenTrainer(tiny.bert(), arguments(tmp_path), noise=value)
    with pytest.raises(ValueError, match=re.escape(message)):
        PACGenTrainingArguments(str(tmp_path), noise=value, use_cpu=True, report_to="none")


def test_a_file_that_is_not_json_or_not_an_object_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "noise.json"
    file.write_text("[1]")
    with pytest.raises(ValueError, match="noise must be a NoiseConfig or a dictionary"):
        as_config(NoiseConfig, str(file), "noise")
    file.write_text("eta: 1")
    with pytest.raises(ValueError, match="noise is not valid JSON"):
        as_config(NoiseConfig, str(file), "noise")
    file.write_bytes(b"\xff{}")
    with pytest.raises(ValueError, match="noise is not valid JSON: 'utf-8' codec"):
        as_config(NoiseConfig, str(file), "noise")


def test_arguments_are_parsed_from_the_command_line_and_files(tmp_path: Path) -> None:
    file = tmp_path / "noise.json"
    file.write_text('{"shape": "isotropic", "scale": 0.05}')
    parser = HfArgumentParser(PACGenTrainingArguments)  # type: ignore[arg-type]
    common = ["--output_dir", str(tmp_path), "--use_cpu", "True", "--report_to", "none"]
    [args] = parser.parse_args_into_dataclasses([*common, "--noise", str(file), "--score", '{"passes": 2}'])
    assert args.noise_config == NoiseConfig(shape="isotropic", scale=0.05)  # type: ignore[arg-type]
    assert args.score_config.passes == 2
    [args] = parser.parse_args_into_dataclasses([*common, "--noise", "{}"])
    assert args.noise_config == NoiseConfig()
    assert args.score_config is None


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "no"}
    common: dict[str, Any] = {"output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return TrainingArguments(**common | settings | changes)
