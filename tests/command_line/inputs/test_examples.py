"""Rows as the inputs of models: texts, and images with and without a processor."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import saved_models
import task_models
from command_runs import QUICK, Run, refused, write_csv, write_images
from PIL import Image
from transformers import ViTImageProcessorPil

from hf_pacgen import PACGenResult
from hf_pacgen.command_line.inputs.examples import shown_example
from hf_pacgen.errors import InputError


def test_language_model_counts_predicted_tokens(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    texts = ["good movie was", "", "the food", "very very bad movie"]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps({"id": i, "content": text}) + "\n" for i, text in enumerate(texts)))
    code, out, _ = run("score", models["language model"], "--dataset", data, *QUICK, "--output", tmp_path / "r.json")
    assert code == 0
    result = PACGenResult.load(tmp_path / "r.json")
    assert (result.num_examples, result.num_units) == (3, 2 + 1 + 3)
    assert "1 of 4 texts are empty and were left out" in out


def test_images_in_parquet(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = write_images(tmp_path / "train.parquet")
    code, out, _ = run("score", models["vision"], "--dataset", data, *QUICK)
    assert code == 0
    assert "image -> label; 6 rows" in out and "resized to 8 x 8" in out
    assert "only 3 different labels occur" in out


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_go_through_the_models_processor(run: Run, models: dict[str, Path], tmp_path: Path, mode: str) -> None:
    model = saved_models.vit(tmp_path / "model", channels=3)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(model)
    code, out, _ = run("score", model, "--dataset", write_images(tmp_path / "train.parquet", mode=mode), *QUICK)
    assert code == 0 and "resized to" not in out


def test_image_files_named_in_a_table(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (9, 7), color={"a": "red", "b": "blue"}[name]).save(tmp_path / f"{name}.png")
    data = write_csv(tmp_path / "t.csv", [(tmp_path / "a.png", 0), (tmp_path / "b.png", 1)], ("picture", "class"))
    assert run("score", models["color vision"], "--dataset", data, *QUICK)[0] == 0


def test_all_texts_empty(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "t.json"
    data.write_text('[{"text": ""}, {"text": " "}]')
    refused(run, "All texts in the column 'text' are empty", "score", models["language model"], "--dataset", data)


def test_images_that_cannot_be_read(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    for name, message in (("a.png", "rows 0 to 0 is one that cannot be read: cannot identify"), ("b.png", "b.png")):
        data = write_csv(tmp_path / f"{name}.csv", [(tmp_path / name, 0)], ("image", "label"))
        refused(run, message, "score", models["vision"], "--dataset", data, *QUICK)


def test_image_processor_for_other_channels(run: Run, tmp_path: Path) -> None:
    model = saved_models.vit(tmp_path / "model", channels=1)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(model)  # means of three channels
    data = write_images(tmp_path / "train.parquet")
    # torchvision's processors make three channels of one
    refusal = "image processor (refuses images of 1 channels|makes images of 3 channels).*preprocessor_config"
    refused(run, refusal, "score", model, "--dataset", data)
    size = {"height": 8, "width": 8}
    ViTImageProcessorPil(size=size, do_convert_rgb=True).save_pretrained(model)
    refused(run, "makes images of 3 channels, and the model takes 1. Repair", "score", model, "--dataset", data)


def test_broken_processors(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    text = saved_models.bert(tmp_path / "text")
    (text / "tokenizer.json").write_text("{")
    refused(run, "No tokenizer can be loaded from", "score", text, "--dataset", write_csv(tmp_path / "t.csv"), *QUICK)
    vision = saved_models.vit(tmp_path / "vision")
    data = write_images(tmp_path / "train.parquet")
    for content in ("{", '{"image_processor_type": "NoSuchProcessor"}'):
        (vision / "preprocessor_config.json").write_text(content)
        message = "image processor of '.*vision' cannot be loaded: .*or remove its preprocessor_config.json"
        refused(run, message, "score", vision, "--dataset", data, *QUICK)


def test_texts_in_dictionaries(models: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"pair": {"a": "good", "b": "bad movie"}, "label": 1}, {"pair": {"a": "bad", "b": "the"}, "label": 0}]
    data = task_models.write_rows(tmp_path / "d.jsonl", rows)
    nested = {"text_column": "pair.a", "text_pair_column": "pair.b"}
    plain = task_models.write_rows(tmp_path / "p.jsonl", [row["pair"] | {"label": row["label"]} for row in rows])  # type: ignore[operator]
    flat = {"text_column": "a", "text_pair_column": "b"}
    found = [task_models.subject(models["classifier"], d, **f).examples for d, f in ((data, nested), (plain, flat))]
    assert list(found[0]) == list(found[1])
    for settings in ({"text_column": "pair.b"}, {"text_column": "pair.b", "label_column": "pair.a"}):
        assert len(list(task_models.subject(models["language model"], data, **settings).examples)) == 2
    with pytest.raises(InputError, match=r"no column 'pair.a'; it has 'pair' \(dictionaries of a, b\).*--label-column"):
        task_models.subject(models["classifier"], data, text_column="pair.b", label_column="pair.a")


def test_a_first_image_that_cannot_be_read(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    cells = [{"bytes": b"no image", "path": None}]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": cells, "label": [0]}, features).to_parquet(tmp_path / "d.parquet")
    refused(
        run,
        "first row of the data cannot be read: .*identify",
        "score",
        models["vision"],
        "--dataset",
        tmp_path / "d.parquet",
    )


def test_an_example_is_shown_in_a_line() -> None:
    assert shown_example(["good " * 40], "label " * 40).count("…") == 2
    assert len(shown_example(["good " * 40], "label " * 40)) == 80
    assert shown_example(["good"], "bad") == "'good' -> 'bad'"
    assert (
        shown_example([[{"role": "user", "content": "hi"}], b"12"], {"text": ["a"]})
        == "[user: 'hi'], 2 bytes -> {text: ['a']}"
    )
