"""What is not saved with a model is named, with what to save."""

from __future__ import annotations

from pathlib import Path

import pytest
import task_models as m

from hf_pacgen.command_line.inputs.processors import load_feature_extractor, load_speech_processor
from hf_pacgen.errors import InputError


def test_a_speech_processor_is_both(tmp_path: Path) -> None:
    extractor, tokens = load_speech_processor(str(m.writer(tmp_path / "model")))
    assert extractor.sampling_rate == 16_000 and tokens("ab")["input_ids"] == [5, 6]


def test_a_processor_of_images_is_none_of_sounds(tmp_path: Path) -> None:
    folder = m.vit(tmp_path / "model", num_labels=2)
    with pytest.raises(InputError, match=r"(is not of sounds|No feature extractor can be loaded from)"):
        load_feature_extractor(str(folder))


def test_a_feature_extractor_without_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoFeatureExtractor.from_pretrained", lambda name, **source: object())
    with pytest.raises(InputError, match=r"feature extractor of 'x' is a object, which is not of sounds. Save the one"):
        load_feature_extractor("x")
