"""Images with masks and boxes: the loss printed is the model's own on batches made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy
import pytest
import task_models as m
import torch
from task_data import BOXES, MASKS, OBJECTS, PICTURES, write_pictures
from transformers import AutoImageProcessor

from hf_pacgen.errors import InputError


def test_masks_of_classes(tmp_path: Path) -> None:
    folder, data = m.segformer(tmp_path / "model", num_labels=3), write_pictures(tmp_path / "d.parquet", masks=MASKS)
    model = m.loaded_model(folder, "SemanticSegmentation")
    made = AutoImageProcessor.from_pretrained(folder)(PICTURES, segmentation_maps=MASKS, return_tensors="pt")
    with torch.no_grad():
        expected = model(pixel_values=made["pixel_values"], labels=made["labels"].long()).loss.item()
    assert m.loss_of(folder, data) == pytest.approx(expected, rel=1e-4)
    assert (
        "image, annotation" not in m.subject(folder, data).title
        and "image -> annotation" in m.subject(folder, data).title
    )


def test_masks_without_a_processor(tmp_path: Path) -> None:
    folder = m.segformer(tmp_path / "model", processor=False, num_labels=3, image_size=8)
    found = m.subject(folder, write_pictures(tmp_path / "d.parquet", masks=MASKS))
    first = found.examples[0]
    assert first["labels"].shape == (8, 8) and first["pixel_values"].shape == (3, 8, 8)
    assert set(numpy.unique(first["labels"])) <= {0, 1, 2, 255} and "resized to 8 x 8" in " ".join(found.notes)


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    folder, data = m.segformer(tmp_path / "model", num_labels=2), write_pictures(tmp_path / "d.parquet", masks=MASKS)
    with pytest.raises(InputError, match=r"mask of row 0 .* has the class 2, and the model has 2 \(0 to 1\)"):
        m.subject(folder, data).examples[0]
    colors = write_pictures(tmp_path / "colors.parquet", masks=PICTURES)
    with pytest.raises(InputError, match=r"A mask has colors \(mode RGB\): expected one number a pixel"):
        m.subject(folder, colors).examples[0]


@pytest.mark.parametrize("form", ["lists", "dictionaries"])
def test_boxes(form: str, tmp_path: Path) -> None:
    # classes in another order than the model's, which is matched by name
    names: dict[str, Any] = {"id2label": {0: "dog", 1: "cat"}, "label2id": {"dog": 0, "cat": 1}}
    folder = m.yolos(tmp_path / "model", **names)
    rows: list[Any] = OBJECTS
    kind: Any = None
    if form == "dictionaries":
        rows = [[{"bbox": b, "category": c} for b, c in zip(r["bbox"], r["category"], strict=True)] for r in OBJECTS]
        kind = datasets.List({"bbox": datasets.List(datasets.Value("float32")), "category": BOXES["category"].feature})
    data = write_pictures(tmp_path / "d.parquet", objects=rows, kind=kind)
    model = m.loaded_model(folder, "ObjectDetection")
    processor = AutoImageProcessor.from_pretrained(folder)
    losses = []
    for picture, one in zip(PICTURES, OBJECTS, strict=True):
        notes = [
            {"image_id": 0, "bbox": box, "category_id": 1 - kind_, "area": box[2] * box[3], "iscrowd": 0}
            for box, kind_ in zip(one["bbox"], one["category"], strict=True)
        ]
        made = processor([picture], annotations=[{"image_id": 0, "annotations": notes}], return_tensors="pt")
        labels = [{key: made["labels"][0][key] for key in ("class_labels", "boxes")}]
        with torch.no_grad():
            losses.append(model(pixel_values=made["pixel_values"], labels=labels).loss.item())
    found = m.subject(folder, data)
    from hf_pacgen import pacgen

    alone = pacgen(found.model, found.examples, config=m.QUICK, batch_size=1, progress=False)
    assert alone.loss == pytest.approx(sum(losses) / 3, rel=1e-4) and alone.num_examples == 3


def test_boxes_that_cannot_be_used(tmp_path: Path) -> None:
    bare = m.yolos(tmp_path / "bare", processor=False, num_labels=2)
    data = write_pictures(tmp_path / "d.parquet", objects=OBJECTS)
    with pytest.raises(InputError, match="No image processor is saved with the model: what scales the boxes"):
        m.subject(bare, data)
    folder = m.yolos(tmp_path / "model", num_labels=2)
    kind = {"where": BOXES["bbox"], "category": BOXES["category"]}
    odd = [{"where": one["bbox"], "category": one["category"]} for one in OBJECTS]
    with pytest.raises(InputError, match=r"objects of row 0 .* have where, category: expected bbox and category"):
        m.subject(folder, write_pictures(tmp_path / "odd.parquet", objects=odd, kind=kind))
    none: list[Any] = [{"bbox": [], "category": []}] * 3
    with pytest.raises(InputError, match="'objects' has no object in any row"):
        m.subject(folder, write_pictures(tmp_path / "none.parquet", objects=none))


def test_a_folder_of_images(tmp_path: Path) -> None:
    names: dict[str, Any] = {"id2label": {0: "dog", 1: "cat"}, "label2id": {"dog": 0, "cat": 1}}
    folder = m.vit(tmp_path / "model", **names)
    for i, (picture, kind) in enumerate(zip(PICTURES, ("dog", "cat", "dog"), strict=True)):
        (tmp_path / "images" / kind).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "images" / kind / f"{i}.png")
    found = m.subject(folder, tmp_path / "images")
    model = m.loaded_model(folder, "ImageClassification")
    made = AutoImageProcessor.from_pretrained(folder)(PICTURES, return_tensors="pt")
    with torch.no_grad():
        expected = model(**made, labels=torch.tensor([0, 1, 0])).loss.item()
    assert m.loss_of(folder, tmp_path / "images") == pytest.approx(expected, rel=1e-5)
    assert "image of 14 x 20 -> 'cat'" in found.title
