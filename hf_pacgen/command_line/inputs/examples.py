"""Rows as the model's inputs, made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import numpy
from torch.utils.data import Dataset

from hf_pacgen.command_line.inputs.columns import Columns
from hf_pacgen.command_line.inputs.labels import Labels, check_complete
from hf_pacgen.errors import InputError, refusing

DEFAULT_MAX_LENGTH = 512  # what most encoders take; a product on longer texts needs much memory
UNLIMITED = 10**6  # tokenizers without a limit of their own say 10^30
REPAIR = "Repair preprocessor_config.json in the model's folder."
Rows = dict[str, list[Any]]


class Examples(Dataset):
    """A map-style dataset of model inputs; only the rows that are scored are tokenized or decoded."""

    def __init__(
        self, table: datasets.Dataset, encode: Callable[[Rows], list[dict[str, Any]]], notes: tuple[str, ...] = ()
    ) -> None:
        self.table, self.encode = table, encode
        self.notes = notes  # what was done to the data that the user should know, in sentences

    def __len__(self) -> int:
        return len(self.table)

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        failed = f"Among the rows {rows[0]} to {rows[-1]} is one that cannot be read"
        with refusing(failed, "Repair or remove it."):  # an image that cannot be decoded
            columns = self.table[rows]
        return self.encode(columns)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]  # torch's loaders ask for a batch at once


def text_examples(
    table: datasets.Dataset,
    columns: Columns,
    tokenizer: Any,
    config: Any,
    *,
    labels: Labels | None,
    max_length: int | None,
) -> Examples:
    """Tokenized texts with the encoded label, or with their own tokens as labels for a language model."""
    text = str(columns.text)
    for column in filter(None, (columns.text, columns.text_pair)):
        check_complete(table, column, "a text")
    limit = _token_limit(tokenizer, config, max_length)
    if getattr(config, "pad_token_id", None) is None:
        # without one, a classifier on GPT-2 or Llama cannot find the last token of a padded text
        known = (number for number in (tokenizer.pad_token_id, tokenizer.eos_token_id) if number is not None)
        config.pad_token_id = next(known, 0)
    notes: tuple[str, ...] = ()
    if labels is None:
        # a text without a token has no loss, and would be an example in the count without being one
        filled = [row for row, value in enumerate(table[text]) if value.strip()]
        if not filled:
            raise InputError(f"All texts in the column {text!r} are empty: there is no token to predict.")
        if empty := len(table) - len(filled):
            notes = (f"{empty:,} of {len(table):,} texts are empty and were left out.",)
            table = table.select(filled)

    def encode(rows: Rows) -> list[dict[str, Any]]:
        pairs = [rows[columns.text_pair]] if columns.text_pair else []
        encoded = tokenizer(rows[text], *pairs, truncation=True, max_length=limit)
        examples = [{key: encoded[key][i] for key in encoded} for i in range(len(rows[text]))]
        for i, example in enumerate(examples):
            example["labels"] = list(example["input_ids"]) if labels is None else labels(rows[str(columns.label)][i])
        return examples

    return Examples(table, encode, notes)


def _token_limit(tokenizer: Any, config: Any, asked: int | None) -> int:
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < UNLIMITED]
    largest = min(known, default=UNLIMITED)
    if asked is None:
        return min(largest, DEFAULT_MAX_LENGTH)
    if asked > largest:  # the model would fail on an index in the middle of the work
        raise InputError(f"--max-length {asked} is more than the {largest} tokens that the model can take.")
    return asked


def image_examples(
    table: datasets.Dataset, columns: Columns, processor: Any, config: Any, *, labels: Labels, max_length: int | None
) -> Examples:
    """Images as the model's pixel values, with the encoded label; ``max_length`` is of texts.

    Without an image processor they are resized to ``config.image_size`` and scaled to [-1, 1].
    """
    image, label = str(columns.image), str(columns.label)
    check_complete(table, image, "an image")
    if not isinstance(table.features[image], datasets.Image):
        # text or bytes: `datasets` opens them when a row is asked for
        table = table.cast_column(image, datasets.Image())
    channels = getattr(config, "num_channels", None) or 3
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    assumed = (
        f"No image processor is saved with the model, so images were resized to {height} x {width} and scaled to "
        "[-1, 1]. If it was trained on images made otherwise, save the processor in the model's folder."
    )

    def encode(rows: Rows) -> list[dict[str, Any]]:
        images = [picture.convert("L" if channels == 1 else "RGB") for picture in rows[image]]
        if processor is None:
            pixels = [_scaled(picture, height, width) for picture in images]
        else:
            pixels = _processed(images, processor, channels, getattr(config, "num_channels", None))
        values = zip(pixels, rows[label], strict=True)
        return [{"pixel_values": picture, "labels": labels(raw)} for picture, raw in values]

    return Examples(table, encode, (assumed,) if processor is None else ())


def _processed(images: list[Any], processor: Any, channels: int, wanted: int | None) -> list[numpy.ndarray]:
    with refusing(f"The model's image processor refuses images of {channels} channels", REPAIR, kind=ValueError):
        pixels = list(processor(images, return_tensors="np")["pixel_values"])
    made = len(pixels[0])
    if wanted not in (None, made):
        makes = f"makes images of {made} channels, and the model takes {channels}"
        raise InputError(f"The model's image processor {makes}. {REPAIR}")
    return pixels


def _scaled(picture: Any, height: int, width: int) -> numpy.ndarray:
    # to [-1, 1] and shape (channels, height, width), as most vision transformers were trained
    values = numpy.asarray(picture.resize((width, height)), dtype=numpy.float32) / 127.5 - 1
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
