"""Sounds: decoded to the right samples, at the model's rate, with the model's own loss."""

from __future__ import annotations

import io
import sys
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy
import pytest
import task_models as m
import torch
from transformers import AutoFeatureExtractor, Wav2Vec2Processor

from hf_pacgen.command_line.inputs.sounds import at_rate, samples_of
from hf_pacgen.errors import InputError

DRAW = numpy.random.default_rng(0)
SOUNDS = [0.2 * DRAW.normal(size=n).clip(-4, 4).astype(numpy.float32) for n in (480, 720, 600)]


def content(samples: Any, *, rate: int = 16_000, width: int = 2, channels: int = 1) -> bytes:
    """A WAV file."""
    whole = numpy.round(numpy.asarray(samples, dtype=numpy.float64) * (2 ** (8 * width - 1) - 1)).astype(numpy.int64)
    if width == 1:
        raw = (whole + 128).astype(numpy.uint8).tobytes()
    else:
        raw = b"".join(int(one).to_bytes(width, "little", signed=True) for one in whole.reshape(-1))
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(raw)
    return file.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_wave_files_of_every_width(width: int, channels: int, tmp_path: Path) -> None:
    samples = numpy.linspace(-0.9, 0.9, 24).reshape(-1, channels)
    file = content(samples, width=width, channels=channels, rate=8000)
    (tmp_path / "a.wav").write_bytes(file)
    for cell in (file, str(tmp_path / "a.wav")):
        given = {"bytes": cell, "path": None} if isinstance(cell, bytes) else cell
        found, rate = samples_of(given, 0)
        assert rate == 8000 and found.dtype == numpy.float32
        numpy.testing.assert_allclose(found, samples.mean(1), atol=1.5 / 2 ** (8 * width - 1) + 1e-6)


def test_other_rates_are_brought_to_the_models() -> None:
    assert at_rate(SOUNDS[0], 16_000, 16_000) is SOUNDS[0]
    time = numpy.arange(800) / 8000
    slow = numpy.sin(2 * numpy.pi * 440 * time).astype(numpy.float32)
    fast = numpy.sin(2 * numpy.pi * 440 * numpy.arange(1600) / 16_000)
    numpy.testing.assert_allclose(at_rate(slow, 8000, 16_000)[100:-100], fast[100:-100], atol=0.01)


def test_sounds_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"sound of row 3 .*its bytes\) cannot be read: .*other files need soundfile: pip install"
    ):
        samples_of({"bytes": b"OggS", "path": None}, 3)
    with pytest.raises(InputError, match=r"no.wav\) cannot be read: .*No such file.* Correct its name"):
        samples_of(str(tmp_path / "no.wav"), 0)


@pytest.mark.parametrize("form", ["folder", "arrays", "paths", "bytes"])
def test_a_class_of_each_sound(form: str, tmp_path: Path) -> None:
    names: dict[str, Any] = {"id2label": {0: "yes", 1: "no"}, "label2id": {"yes": 0, "no": 1}}
    folder = m.listener(tmp_path / "model", **names)
    kinds, files = ["yes", "no", "yes"], []
    data = tmp_path / "sounds"
    for i, (sound, kind) in enumerate(zip(SOUNDS, kinds, strict=True)):
        (data / kind).mkdir(parents=True, exist_ok=True)
        files.append(data / kind / f"{i}.wav")
        files[-1].write_bytes(content(sound))
    rows: Any = data
    if form == "arrays":
        rows = [{"audio": {"array": samples_of(str(f), 0)[0].tolist(), "sampling_rate": 16_000}} for f in files]
    elif form == "paths":
        rows = [{"file": str(file)} for file in files]
    elif form == "bytes":
        rows = tmp_path / "sounds.parquet"
        cells = [{"bytes": file.read_bytes(), "path": None} for file in files]
        made = datasets.Dataset.from_dict({"audio": cells, "label": kinds})
        made.cast_column("audio", datasets.Audio(decode=False)).to_parquet(rows)
    if isinstance(rows, list):
        rows = [row | {"label": kind} for row, kind in zip(rows, kinds, strict=True)]
    model = m.loaded_model(folder, "AudioClassification")
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    losses = []
    for file, kind in zip(files, kinds, strict=True):
        made = extractor(samples_of(str(file), 0)[0], sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            losses.append(model(**made, labels=torch.tensor([names["label2id"][kind]])).loss.item())
    assert m.loss_of(folder, rows) == pytest.approx(sum(losses) / 3, rel=1e-4)


def test_what_is_said(tmp_path: Path) -> None:
    folder = m.writer(tmp_path / "model")
    texts = ["abc de", "hag", "bad"]
    cells = [{"array": one.tolist(), "sampling_rate": 16_000} for one in SOUNDS]
    rows = [{"audio": cell, "text": text} for cell, text in zip(cells, texts, strict=True)]
    model, processor = m.loaded_model(folder, "CTC"), Wav2Vec2Processor.from_pretrained(folder)
    losses = []
    for sound, text in zip(SOUNDS, texts, strict=True):
        made = processor(audio=sound, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            losses.append(model(**made, labels=torch.tensor([processor.tokenizer(text)["input_ids"]])).loss.item())
    assert m.loss_of(folder, rows) == pytest.approx(sum(losses) / 3, rel=1e-4)
    assert "'a sound' -> 'abc de'" in m.subject(folder, rows).title


def test_letters_that_the_tokenizer_does_not_know(tmp_path: Path) -> None:
    folder, cell = m.writer(tmp_path / "model"), {"array": SOUNDS[0].tolist(), "sampling_rate": 16_000}
    found = m.subject(folder, [{"audio": cell, "text": "abC"}])
    assert found.notes[0].startswith("1 of the 3 letters in the first 1 transcriptions are unknown to the tokenizer")
    with pytest.raises(InputError, match=r"3 of the 3 letters .* there is nothing to predict. Write them as the model"):
        m.subject(folder, [{"audio": cell, "text": "ABC"}])


def test_a_transcription_that_no_alignment_spells(tmp_path: Path) -> None:
    folder = m.writer(tmp_path / "model")
    rows = [{"audio": {"array": [0.1, 0.2] * 40, "sampling_rate": 16_000}, "text": "abc"}]  # of 5 frames
    assert 0 < m.loss_of(folder, rows) < float("inf")
    for text, needed in (("abcdef", 6), ("aabb", 6)):
        rows[0]["text"] = text
        with pytest.raises(
            InputError, match=rf"row 0 .* takes {needed} frames, and the model makes 5 of its 80 samples"
        ):
            list(m.subject(folder, rows).examples)


def test_a_feature_extractor_that_is_not_of_sounds_or_not_there(tmp_path: Path) -> None:
    folder = m.listener(tmp_path / "model", num_labels=2)
    rows = [{"audio": {"array": [0.0] * 400, "sampling_rate": 16_000}, "label": i} for i in (0, 1)]
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="No feature extractor can be loaded from"):
        m.subject(folder, rows)


def test_other_files_are_read_by_soundfile(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(file: io.BytesIO, dtype: str) -> tuple[numpy.ndarray, int]:
        if file.read() != b"fLaC":
            raise RuntimeError("Format not recognised.")
        return numpy.array([[0.5, 0.0], [0.0, 0.5]], dtype=dtype), 8000

    monkeypatch.setitem(sys.modules, "soundfile", SimpleNamespace(read=read, __spec__=object()))
    samples, rate = samples_of({"bytes": b"fLaC", "path": None}, 0)
    assert samples.tolist() == [0.25, 0.25] and rate == 8000
    with pytest.raises(InputError, match=r"sound of row 1 .* cannot be read: Format not recognised. Repair or remove"):
        samples_of({"bytes": b"what", "path": None}, 1)
