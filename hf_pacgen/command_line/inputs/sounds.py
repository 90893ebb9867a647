"""Sounds as the inputs of models: decoded, brought to the model's rate, with a class or what is said."""

from __future__ import annotations

import importlib.util
import io
import wave
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import gcd
from typing import Any

import datasets
import numpy
import torch

from hf_pacgen.command_line.inputs.data import check_complete
from hf_pacgen.command_line.inputs.examples import LOOKED_AT, Examples, Material, Rows, StreamedExamples
from hf_pacgen.data.losses import IGNORED
from hf_pacgen.errors import InputError, refusing

INPUT_NAMES = ("input_values", "input_features")


def heard(material: Material) -> Examples | StreamedExamples:
    """Sounds with the encoded label."""
    label, labels = str(material.columns.label), material.labels
    return _sounds(material, material.processor, lambda rows: [labels(raw) for raw in rows[label]])  # type: ignore[misc]


def transcribed(material: Material) -> Examples | StreamedExamples:
    """Sounds with the letters of what is said; the loss aligns them (CTC)."""
    label = str(material.columns.label)
    extractor, tokenizer = material.processor
    check_complete(material.table, label, "a transcription")

    def spoken(rows: Rows) -> list[list[int]]:
        found: list[list[int]] = tokenizer(rows[label])["input_ids"]
        return found

    return _sounds(material, extractor, spoken, _unknown(spoken, material, label, tokenizer.unk_token_id))


def _unknown(spoken: Any, material: Material, label: str, unknown: int | None) -> tuple[str, ...]:
    """A sentence where letters are none of the tokenizer's, such as capitals.

    Raises:
        InputError: all of the first rows' are.
    """
    texts = material.table.select_columns([label])[:LOOKED_AT]
    letters = [token for ids in spoken(texts) for token in ids]
    lost = letters.count(unknown) if unknown is not None else 0
    if not lost:
        return ()
    where = f"the {len(letters):,} letters in the first {len(texts[label])} transcriptions"
    said = f"{lost:,} of {where} are unknown to the tokenizer"
    remedy = "Write them as the model was trained: often in capitals, or without, and without punctuation."
    if lost == len(letters):
        raise InputError(f"{said}: there is nothing to predict. {remedy}")
    return (f"{said}, and count as one and the same letter. {remedy}",)


def _sounds(
    material: Material, extractor: Any, labels_of: Any, notes: tuple[str, ...] = ()
) -> Examples | StreamedExamples:
    column, rate = str(material.columns.audio), int(extractor.sampling_rate)
    check_complete(material.table, column, "a sound")
    if isinstance(material.table.features[column], datasets.Audio):  # decoded here: torchcodec may not be installed
        material = material.cast(column, datasets.Audio(decode=False))

    def encode(rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        sounds = [at_rate(*samples_of(cell, n), rate) for cell, n in zip(rows[column], numbers, strict=True)]
        examples = []
        for sound, label, number in zip(sounds, labels_of(rows), numbers, strict=True):
            if isinstance(label, list):
                _check_room(len(sound), label, material.config, number)
            with refusing("The model's feature extractor refuses a sound", "Repair preprocessor_config.json."):
                made = extractor(sound, sampling_rate=rate)
            key = next(name for name in INPUT_NAMES if name in made)
            examples.append({key: numpy.asarray(made[key][0], dtype=numpy.float32), "labels": label})
        return examples

    def collate(examples: list[Any]) -> dict[str, Any]:
        key = next(name for name in INPUT_NAMES if name in examples[0])
        batch = dict(extractor.pad([{key: one[key]} for one in examples], padding=True, return_tensors="pt"))
        labels = [one["labels"] for one in examples]
        if isinstance(labels[0], list):
            rows = [torch.tensor(one, dtype=torch.long) for one in labels]
            batch["labels"] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
        else:
            batch["labels"] = torch.tensor(labels)
        return batch

    return material.examples(encode, collate=collate, notes=notes)


def _check_room(samples: int, letters: list[int], config: Any, row: int) -> None:
    """Raise for a transcription that no alignment with its sound can spell, whose loss is infinite."""
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    if (
        not kernels
        or not strides
        or getattr(config, "add_adapter", False)
        or getattr(config, "ctc_zero_infinity", False)
    ):
        return
    frames = samples
    for kernel, stride in zip(kernels, strides, strict=True):
        frames = (frames - kernel) // stride + 1
    # a letter that is said twice has a blank in between
    needed = len(letters) + sum(one == other for one, other in pairwise(letters))
    if needed > frames:
        raise InputError(
            f"The transcription of row {row} (counted from 0) takes {needed} frames, and the model makes "
            f"{max(frames, 0)} of its {samples:,} samples: the loss would be infinite. Repair or remove it, or set "
            "ctc_zero_infinity in config.json if the model was trained so."
        )


def samples_of(cell: Any, row: int) -> tuple[numpy.ndarray, int]:
    """The samples of a sound in [-1, 1], one channel, and their rate.

    WAV files of integers are read by the standard library; all others need soundfile.
    """
    if isinstance(cell, Mapping) and cell.get("array") is not None:
        return _one_channel(numpy.asarray(cell["array"], dtype=numpy.float32).T), int(cell["sampling_rate"])
    content = cell.get("bytes") if isinstance(cell, Mapping) else None
    path = cell.get("path") if isinstance(cell, Mapping) else cell
    failed = f"The sound of row {row} (counted from 0; {path or 'its bytes'}) cannot be read"
    if content is None:
        with refusing(failed, "Correct its name."), open(str(path), "rb") as file:
            content = file.read()
    if importlib.util.find_spec("soundfile") is not None:
        import soundfile

        with refusing(failed, "Repair or remove it."):
            samples, rate = soundfile.read(io.BytesIO(content), dtype="float32")
        return _one_channel(samples), int(rate)
    remedy = "If it is a WAV file, repair or remove it; other files need soundfile: pip install soundfile."
    with refusing(failed, remedy):
        return _of_wave(content)


def _of_wave(content: bytes) -> tuple[numpy.ndarray, int]:
    with wave.open(io.BytesIO(content)) as file:
        width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
        raw = file.readframes(file.getnframes())
    if width == 1:  # the only width without a sign
        samples = numpy.frombuffer(raw, numpy.uint8).astype(numpy.float32) / 128 - 1
    elif width == 3:
        low = numpy.frombuffer(raw, numpy.uint8).reshape(-1, 3)
        padded = numpy.concatenate([numpy.zeros((len(low), 1), numpy.uint8), low], axis=1)
        samples = padded.reshape(-1).view("<i4").astype(numpy.float32) / 2**31
    else:
        samples = numpy.frombuffer(raw, f"<i{width}").astype(numpy.float32) / 2.0 ** (8 * width - 1)
    return _one_channel(samples.reshape(-1, channels)), rate


def _one_channel(samples: numpy.ndarray) -> numpy.ndarray:
    mixed = samples if samples.ndim == 1 else samples.mean(axis=1)
    return numpy.asarray(mixed, dtype=numpy.float32)


def at_rate(samples: numpy.ndarray, rate: int, wanted: int) -> numpy.ndarray:
    """Samples at another rate."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    common = gcd(rate, wanted)
    return numpy.asarray(resample_poly(samples, wanted // common, rate // common), dtype=numpy.float32)
