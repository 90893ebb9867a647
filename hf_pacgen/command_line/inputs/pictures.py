"""Images as the inputs of models: with a class, a mask of classes, or boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy
import torch

from hf_pacgen.command_line.inputs import columns as c
from hf_pacgen.command_line.inputs.data import check_complete
from hf_pacgen.command_line.inputs.examples import Examples, Material, Rows, StreamedExamples, unbatched
from hf_pacgen.command_line.inputs.labels import Labels, class_numbers
from hf_pacgen.errors import InputError, refusing

REPAIR = "Repair preprocessor_config.json in the model's folder."
UNLABELED = 255  # of pixels that do not count


def seen(material: Material) -> Examples | StreamedExamples:
    """Images as the model's pixel values, with the encoded label.

    Without an image processor they are resized to ``config.image_size`` and scaled to [-1, 1].
    """
    config, processor, labels = material.config, material.processor, material.labels
    image, label = str(material.columns.image), str(material.columns.label)
    material = _opened(material, image)
    channels = getattr(config, "num_channels", None) or 3
    height, width = _size(config)

    def encode(rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        images = [picture.convert("L" if channels == 1 else "RGB") for picture in rows[image]]
        if processor is None:
            pixels = [_scaled(picture, height, width) for picture in images]
        else:
            pixels = _processed(images, processor, channels, getattr(config, "num_channels", None))
        values = zip(pixels, rows[label], strict=True)
        return [{"pixel_values": picture, "labels": labels(raw)} for picture, raw in values]  # type: ignore[misc]

    return material.examples(encode, notes=_assumed(processor, height, width))


def segmented(material: Material) -> Examples | StreamedExamples:
    """Images with the class of every pixel."""
    image, mask = str(material.columns.image), str(material.columns.label)
    processor, config = material.processor, material.config
    material = _opened(_opened(material, image), mask)
    height, width = _size(config)
    outputs = config.num_labels
    # what the model's own loss leaves out
    ignored = {UNLABELED, getattr(config, "semantic_loss_ignore_index", UNLABELED)}

    def encode(rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        pictures = [picture.convert("RGB") for picture in rows[image]]
        maps = [_classes_of(picture) for picture in rows[mask]]
        if processor is None:
            pixels = [_scaled(picture, height, width) for picture in pictures]
            found = [_nearest(one, height, width) for one in maps]
        else:
            with refusing("The model's image processor refuses the images or their masks", REPAIR):
                made = processor(images=pictures, segmentation_maps=maps, return_tensors="np")
            pixels, found = list(made["pixel_values"]), list(made["labels"])
        for one, number in zip(found, numbers, strict=True):
            beyond = sorted(set(numpy.unique(one).tolist()) - set(range(outputs)) - ignored)
            if beyond:
                raise InputError(
                    f"The mask of row {number} (counted from 0) has the class {beyond[-1]}, and the model has "
                    f"{outputs} (0 to {outputs - 1}): expected these, or {UNLABELED} where a pixel does not count. "
                    "Give the masks it was trained on."
                )
        pairs = zip(pixels, found, strict=True)
        return [{"pixel_values": p, "labels": numpy.ascontiguousarray(m, dtype=numpy.int64)} for p, m in pairs]

    return material.examples(encode, notes=_assumed(processor, height, width))


def detected(material: Material) -> Examples | StreamedExamples:
    """Images with their objects: boxes in pixels (left, top, width, height), as COCO has them, and classes."""
    image, objects = str(material.columns.image), str(material.columns.label)
    processor, labels = material.processor, material.labels
    if processor is None:
        raise InputError(
            "No image processor is saved with the model: what scales the boxes of objects with their image cannot be "
            "told. Save the one it was trained with in the model's folder."
        )
    material = _opened(material, image)

    def encode(rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        examples = []
        for row, number in zip(unbatched(rows), numbers, strict=True):
            boxes = objects_of(row[objects], number)
            notes = [
                {
                    "image_id": number,
                    "bbox": list(box),
                    "category_id": labels([name])[0],  # type: ignore[misc]
                    "area": float(box[2] * box[3]),
                    "iscrowd": 0,
                }
                for box, name in boxes
            ]
            examples.append({"image": row[image].convert("RGB"), "objects": {"image_id": number, "annotations": notes}})
        return examples

    def collate(examples: list[Any]) -> dict[str, Any]:
        # images of one batch get one size
        with refusing("The model's image processor refuses the images or their boxes", REPAIR):
            made = processor(
                images=[one["image"] for one in examples],
                annotations=[one["objects"] for one in examples],
                return_tensors="pt",
            )
        wanted = ("class_labels", "boxes")
        kept = {key: made[key] for key in ("pixel_values", "pixel_mask") if key in made}
        return {**kept, "labels": [{key: torch.as_tensor(one[key]) for key in wanted} for one in made["labels"]]}

    said = "Boxes were taken as COCO has them: left, top, width and height in pixels."
    return material.examples(encode, notes=(said,), collate=collate)


BOX_NAMES, CLASS_NAMES = ("bbox", "boxes", "box"), ("category", "category_id", "label", "labels", "categories", "class")


def objects_of(cell: Any, number: int) -> list[tuple[Sequence[float], Any]]:
    """The boxes of a row with their classes."""
    rows = [cell] if isinstance(cell, Mapping) else list(cell or [])
    found: list[tuple[Sequence[float], Any]] = []
    for row in rows:
        box = next((row[name] for name in BOX_NAMES if name in row), None)
        kind = next((row[name] for name in CLASS_NAMES if name in row), None)
        if box is None or kind is None:
            raise InputError(
                f"The objects of row {number} (counted from 0) have {', '.join(row)}: expected bbox and category, as "
                "COCO has them. Rename them."
            )
        single = not isinstance(kind, (list, tuple))
        found += [(box, kind)] if single else list(zip(box, kind, strict=True))
    return found


def object_labels(table: datasets.Dataset, columns: c.Columns, config: Any, *, new_head: bool) -> Labels:
    """The classes of objects."""
    column = str(columns.label)
    check_complete(table, column, "objects")
    cells = table.select_columns([column])[:][column]
    values = {kind for number, cell in enumerate(cells) for _, kind in objects_of(cell, number)}
    if not values:
        raise InputError(f"The column {column!r} has no object in any row: there is nothing to score.")
    feature = _class_feature(table.features[column])
    found = class_numbers(sorted(values), feature, column, config, new_head=new_head)
    return dataclasses.replace(found, several=True)


def _class_feature(feature: Any) -> Any:
    inner = c.item_of(feature) if c.is_list(feature) else feature
    named = next((inner[name] for name in CLASS_NAMES if name in inner), None)
    return c.item_of(named) if named is not None and c.is_list(named) else named


def _opened(material: Material, column: str) -> Material:
    """The material with a column opened as images when a row is asked for: text, or bytes, are cast."""
    check_complete(material.table, column, "an image")
    is_open = isinstance(material.table.features[column], datasets.Image)
    return material if is_open else material.cast(column, datasets.Image())


def _size(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", None) or 224
    return (size, size) if isinstance(size, int) else tuple(size)


def _assumed(processor: Any, height: int, width: int) -> tuple[str, ...]:
    if processor is not None:
        return ()
    return (
        f"No image processor is saved with the model, so images were resized to {height} x {width} and scaled to "
        "[-1, 1]. If it was trained on images made otherwise, save the processor in the model's folder.",
    )


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


def _classes_of(picture: Any) -> numpy.ndarray:
    """The classes of a mask's pixels: of one channel, or of an image of indexed colors."""
    if picture.mode not in ("L", "P", "I", "I;16", "1"):
        raise InputError(
            f"A mask has colors (mode {picture.mode}): expected one number a pixel, its class. Convert the masks."
        )
    return numpy.asarray(picture).astype(numpy.int32)


def _nearest(classes: numpy.ndarray, height: int, width: int) -> numpy.ndarray:
    rows = (numpy.arange(height) + 0.5) * classes.shape[0] // height
    columns = (numpy.arange(width) + 0.5) * classes.shape[1] // width
    return classes[rows.astype(int)][:, columns.astype(int)]
