"""A classifier with a promised threshold abstains as it was promised."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import saved_models
import torch
from promised import drawn, head, held_out, promised
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_pacgen.errors import InputError
from hf_pacgen.promises import FILE, SelectiveClassifier, save_selective
from hf_pacgen.results.base import MissingFile


def test_what_is_answered_is_what_was_counted(tmp_path: Path) -> None:
    data = held_out(400, 1, 50)
    promise = promised(head(), data, max_error=0.15, training_data=held_out(300, 9, 50))
    path = save_selective(promise, tmp_path)
    assert path.name == FILE == "hf_pacgen_selective.json"
    model = SelectiveClassifier.load(head(), tmp_path)
    found = torch.cat([model(features=batch["features"]) for batch in data])
    labels = torch.cat([batch["labels"] for batch in data])
    answered = found != -1
    assert int(answered.sum()) == promise.answered and not bool(answered.all())
    assert int((found != labels)[answered].sum()) == promise.answered_errors
    raw = head()(data[0]["features"])
    assert torch.equal(model.answers(raw), found[:50]) and torch.equal(model.answers(raw["logits"]), found[:50])
    assert torch.equal(model.answers((torch.zeros(()), raw["logits"])), found[:50])
    broken = torch.tensor([[float("nan"), 0.0], [9.0, 0.0]])
    assert model.answers(broken).tolist() == [-1, 0]
    assert not model.train().training and not model.model.training


def test_sets_hold_what_they_were_counted_by(tmp_path: Path) -> None:
    data = held_out(200, 2, 50)
    promise = promised(head(), data, coverage=0.9)
    model = SelectiveClassifier(head(), promise)
    found = torch.cat([model(features=batch["features"]) for batch in data])
    labels = torch.cat([batch["labels"] for batch in data])
    assert float(found.gather(-1, labels[:, None]).double().mean()) == promise.coverage
    assert float(found.sum(1).double().mean()) == promise.set_size
    assert model.answers(torch.tensor([[float("nan"), 0.0]])).tolist() == [[True, True]]


def test_pipelines(tmp_path: Path) -> None:
    folder = saved_models.bert(tmp_path / "model", id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    texts = ["good movie", "awful food was bad", "very fine", "the"]
    data = [
        dict(AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")) | {"labels": torch.tensor([i % 2])}
        for i, text in enumerate(texts)
    ]
    made = promised(model, data, coverage=0.05, delta=0.5)
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    logits = model.eval()(**tokens).logits
    middle = float(logits.softmax(-1).amax(-1).median()) + 1e-4
    abstaining = SelectiveClassifier(model, dataclasses.replace(made, rule="abstain", threshold=middle))
    by_model = [None if c == -1 else ["bad", "good"][c] for c in abstaining(**tokens).tolist()]
    assert abstaining.answers(classify(texts)) == by_model and None in by_model and len(set(by_model)) > 1
    assert abstaining.answers(classify(texts, top_k=None)) == by_model
    sets = SelectiveClassifier(model, dataclasses.replace(made, threshold=0.5))
    kept = [{["bad", "good"][c] for c, is_in in enumerate(row) if is_in} for row in sets(**tokens).tolist()]
    assert [set(one) for one in sets.answers(classify(texts, top_k=None))] == kept
    with pytest.raises(InputError, match="Sets need the scores of all classes: call the pipeline with top_k=None"):
        sets.answers(classify(texts))
    with pytest.raises(InputError, match=r"must have 'label' and 'score'.*got .'word'"):
        abstaining.answers([{"word": "a"}])


def test_what_has_no_threshold_is_refused(tmp_path: Path) -> None:
    data = held_out(200, 3, 50)
    plain = promised(head(), data)
    with pytest.raises(InputError, match="has no threshold to go by: it was made without max_error= and coverage="):
        save_selective(plain, tmp_path)
    none = promised(head(), [{**b, "labels": 1 - b["labels"]} for b in data], max_error=0.2)
    with pytest.raises(InputError, match="has no threshold to go by: none could be promised"):
        SelectiveClassifier(head(), none)
    made = promised(head(), data, coverage=0.9)
    other = head()
    with torch.no_grad():
        other.linear.weight[0, 0] += 1e-3
    with pytest.raises(InputError, match="The promise is of other weights"):
        SelectiveClassifier(other, made)
    assert SelectiveClassifier(other, made, check=False).threshold == made.threshold
    with pytest.raises(MissingFile, match=f"{FILE} does not exist"):
        SelectiveClassifier.load(head(), tmp_path)
    with pytest.raises(InputError, match=r"needs logits \(examples, classes\), .* got str"):
        SelectiveClassifier(head(), made).answers("good")
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        save_selective(made, tmp_path / "nowhere")


def test_confidence_is_in_float32_at_least() -> None:
    features, _ = drawn(50, 4)
    logits: Any = head().linear(features).detach()
    low = SelectiveClassifier.decide(logits.half(), threshold=0.9)
    assert torch.equal(low, SelectiveClassifier.decide(logits.half().float(), threshold=0.9))
