"""Texts with labels: the loss printed is the model's own on batches made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import task_models as m
import torch
from task_data import NAMED, SQUAD, SWAG, TAGS, WORDS
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, RobertaConfig, RobertaForTokenClassification, RobertaTokenizer

from hf_pacgen import pacgen
from hf_pacgen.errors import InputError


@pytest.mark.parametrize("classes", [False, True])
def test_the_first_token_of_each_word_has_its_tag(classes: bool, tmp_path: Path) -> None:
    folder = m.bert(tmp_path / "model", "TokenClassification", **TAGS)
    data: Any = WORDS
    if classes:  # numbers in another order than the model's
        names = ["B-PER", "I-PER", "O"]
        rows = {"words": [r["tokens"] for r in WORDS], "tags": [[names.index(t) for t in r["ner_tags"]] for r in WORDS]}
        kinds = {
            "words": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=names)),
        }
        data = tmp_path / "words.parquet"
        datasets.Dataset.from_dict(rows, datasets.Features(kinds)).to_parquet(data)
    model, tokens = m.loaded(folder, "TokenClassification")
    examples, units = [], []
    for row in WORDS:
        ids, labels = [tokens.cls_token_id], [-100]
        for word, tag in zip(row["tokens"], row["ner_tags"], strict=True):
            pieces = tokens(word, add_special_tokens=False)["input_ids"]
            ids, labels = ids + pieces, [*labels, TAGS["label2id"][tag], *[-100] * (len(pieces) - 1)]
        examples.append({"input_ids": [*ids, tokens.sep_token_id], "labels": [*labels, -100]})
        units.append(len(row["tokens"]))
    assert len(examples[0]["input_ids"]) > 6  # names are cut into letters
    assert m.loss_of(folder, data) == pytest.approx(m.mean_loss(model, examples, units), rel=1e-5)


def test_answers_in_windows_of_their_context(tmp_path: Path) -> None:
    folder = m.bert(tmp_path / "model", "QuestionAnswering")
    limit = 40
    model, tokens = m.loaded(folder, "QuestionAnswering")
    found = m.subject(folder, SQUAD, max_length=limit)
    said: list[str] = []
    for example in found.examples:
        start, end = example["start_positions"], example["end_positions"]
        assert len(example["input_ids"]) == limit and (start, end) != (0, 1)
        said.append(tokens.decode(example["input_ids"][start : end + 1]))
    # of the windows of the long context, those that hold the whole answer
    assert said[0] == "blue" and said[-1] == "[CLS]" and said[1:-1].count("the movie") in (1, 2)
    assert set(said[1:-1]) == {"the movie", "[CLS]"}
    assert "windows of at most 40 tokens were made of the contexts of 3 questions" in " ".join(found.notes)
    scored = pacgen(found.model, found.examples, config=m.QUICK, batch_size=2, progress=False)
    assert (scored.eta, scored.num_examples) == (3, len(found.examples)) and len(found.examples) > 3
    expected = m.mean_loss(model, [dict(one) for one in found.examples])
    assert m.loss_of(folder, SQUAD, max_length=limit) == pytest.approx(expected, rel=1e-5)
    whole = tokens("what color ?", "the sky is blue .", padding="max_length", max_length=128)
    hand = {**whole, "start_positions": 8, "end_positions": 8}
    assert tokens.convert_ids_to_tokens(whole["input_ids"])[8] == "blue"
    assert m.loss_of(folder, SQUAD[:1]) == pytest.approx(m.mean_loss(model, [hand]), rel=1e-5)
    streamed = m.subject(folder, SQUAD, max_length=limit, streaming=True)
    assert list(streamed.examples) == [dict(one) for one in found.examples]
    assert "counts windows of contexts, unless num_training_examples" in " ".join(streamed.notes)
    listed = [{**row, "answers": [{"text": "blue", "answer_start": 11}]} for row in SQUAD[:1]]
    assert dict(m.subject(folder, listed).examples[0])["start_positions"] == 8


def test_answers_that_do_not_stand_there(tmp_path: Path) -> None:
    folder = m.bert(tmp_path / "model", "QuestionAnswering")
    wrong = [{**SQUAD[0], "answers": {"text": ["blue"], "answer_start": [3]}}]
    with pytest.raises(InputError, match=r"row 0 .* the answer 'blue' does not stand at character 3"):
        m.subject(folder, wrong).examples[0]
    with pytest.raises(InputError, match="A question of 4 tokens leaves no room for its context in 10"):
        m.subject(folder, SQUAD, max_length=10)


@pytest.mark.parametrize(
    "rows",
    [
        SWAG,
        [
            {
                "question": r["sent1"],
                "choices": [f"{r['sent2']} {r[f'ending{i}']}" for i in (0, 1)],
                "answer": "AB"[r["label"]],
            }
            for r in SWAG
        ],
        [
            {
                "question": r["sent1"],
                "choices": {"text": [f"{r['sent2']} {r[f'ending{i}']}" for i in (0, 1)], "label": ["1", "2"]},
                "answerKey": str(r["label"] + 1),
            }
            for r in SWAG
        ],
        [
            {
                "question": r["sent1"],
                "options": [f"{r['sent2']} {r[f'ending{i}']}" for i in (0, 1)],
                "answer": r["sent2"] + " " + r[f"ending{r['label']}"],
            }
            for r in SWAG
        ],
    ],
    ids=["SWAG", "letters", "names", "texts"],
)
def test_choices(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = m.bert(tmp_path / "model", "MultipleChoice")
    model, tokens = m.loaded(folder, "MultipleChoice")
    examples = []
    for row in SWAG:
        ends = [f"{row['sent2']} {row[f'ending{i}']}" for i in (0, 1)]
        examples.append({**tokens([row["sent1"]] * 2, ends, padding=True), "labels": row["label"]})
    assert m.loss_of(folder, rows) == pytest.approx(m.mean_loss(model, examples), rel=1e-5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**SWAG[0], "label": 2}], r"Row 0 .* has 2 in the column 'label': expected the number \(from 0\)"),
        (
            [
                {"question": "sky", "choices": ["good", "bad"], "label": 0},
                {"question": "sky", "choices": ["good", "bad", "blue"], "label": 0},
            ],
            r"Row 1 .* has 3 answers to choose from and row 0 has 2",
        ),
    ],
)
def test_choices_that_cannot_be_used(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    found = m.subject(m.bert(tmp_path / "model", "MultipleChoice"), rows)
    with pytest.raises(InputError, match=message):
        list(found.examples)


def test_regression_of_one_and_of_several_numbers(tmp_path: Path) -> None:
    cases: list[tuple[int, list[dict[str, Any]]]] = [
        (1, [{"text": "good movie", "label": 0.5}, {"text": "bad", "label": -2.0}]),
        (2, [{"text": "good movie", "labels": [0.5, 1.0]}, {"text": "bad", "labels": [-2.0, 0.0]}]),
    ]
    for outputs, rows in cases:
        folder = m.bert(
            tmp_path / f"{outputs}", "SequenceClassification", num_labels=outputs, problem_type="regression"
        )
        model, tokens = m.loaded(folder, "SequenceClassification")
        values = [row.get("label", row.get("labels")) for row in rows]
        hand = [{**tokens(row["text"]), "labels": value} for row, value in zip(rows, values, strict=True)]
        assert m.loss_of(folder, rows) == pytest.approx(m.mean_loss(model, hand), rel=1e-5)


@pytest.mark.parametrize("problem", ["multi_label_classification", None])
@pytest.mark.parametrize("form", ["names", "numbers", "vectors", "columns", "classes"])
def test_several_labels_at_once(form: str, problem: str | None, tmp_path: Path) -> None:
    folder = m.bert(tmp_path / "model", "SequenceClassification", problem_type=problem, **NAMED)
    texts, hot = ["good movie", "bad", "the sky"], [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    names = list(NAMED["label2id"])
    rows: list[dict[str, Any]] = [{"text": text} for text in texts]
    for row, ones in zip(rows, hot, strict=True):
        numbers = [i for i, one in enumerate(ones) if one]
        forms = {"names": [names[i] for i in numbers], "numbers": numbers, "vectors": ones, "classes": numbers}
        row |= dict(zip(names, ones, strict=True)) if form == "columns" else {"labels": forms[form]}
    data: Any = rows
    if form == "classes":
        kinds = {"text": datasets.Value("string"), "labels": datasets.List(datasets.ClassLabel(names=names))}
        data = tmp_path / "several.parquet"
        datasets.Dataset.from_list(rows, features=datasets.Features(kinds)).to_parquet(data)
    if form == "columns" and problem is None:
        with pytest.raises(InputError, match="which column holds the label"):
            m.subject(folder, data)
        return
    model, tokens = m.loaded(folder, "SequenceClassification")
    hand = [{**tokens(text), "labels": [float(one) for one in ones]} for text, ones in zip(texts, hot, strict=True)]
    assert m.loss_of(folder, data) == pytest.approx(m.mean_loss(model, hand), rel=1e-5)


def test_texts_in_parts_and_as_a_stream(tmp_path: Path) -> None:
    folder = m.bert(tmp_path / "model", "SequenceClassification", **NAMED)
    rows = [{"premise": "good movie", "hypothesis": f"bad {'sky ' * i}", "label": i % 3} for i in range(5)]
    model, tokens = m.loaded(folder, "SequenceClassification")
    hand = [{**tokens(row["premise"], row["hypothesis"]), "labels": row["label"]} for row in rows]
    expected = m.mean_loss(model, hand)
    for streaming in (False, True):
        assert m.loss_of(folder, rows, streaming=streaming) == pytest.approx(expected, rel=1e-5)


def test_words_and_tags_that_differ_in_number(tmp_path: Path) -> None:
    folder = m.bert(tmp_path / "model", "TokenClassification", **TAGS)
    found = m.subject(folder, [*WORDS, {"tokens": ["good"], "ner_tags": ["O", "O"]}])
    with pytest.raises(InputError, match=r"Row 2 .* has 1 words in 'tokens' and 2 tags in 'ner_tags'"):
        found.examples[2]


@pytest.mark.parametrize(("head", "rows"), [("TokenClassification", WORDS), ("QuestionAnswering", SQUAD)])
def test_slow_tokenizers_do_not_tell_words(
    head: str, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = m.bert(tmp_path / "model", head, **(TAGS if head == "TokenClassification" else {}))
    kind = type(AutoTokenizer.from_pretrained(folder))
    monkeypatch.setattr(kind, "is_fast", property(lambda self: False))
    with pytest.raises(InputError, match=r"does not tell wh.* expected a fast one"):
        m.subject(folder, rows)


def test_byte_level_tokenizers_take_words_with_their_spaces(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet])}
    tokens: Any = RobertaTokenizer(vocab=vocabulary, merges=[])
    sizes = m.TEXT | {"vocab_size": len(vocabulary), "pad_token_id": 1}
    folder = m.save(RobertaForTokenClassification(RobertaConfig(**sizes, **TAGS)), tmp_path / "model", tokens)
    example = m.subject(folder, [{"tokens": ["ab", "c"], "ner_tags": ["B-PER", "O"]}]).examples[0]
    assert tokens.convert_ids_to_tokens(example["input_ids"]) == ["<s>", "Ġ", "a", "b", "Ġ", "c", "</s>"]
    assert example["labels"] == [-100, 1, -100, -100, 0, -100, -100]


def test_answers_that_are_counted_from_one(tmp_path: Path) -> None:
    folder = m.bert(tmp_path / "model", "MultipleChoice")
    rows = [{"sentence": "the sky", "option1": "good", "option2": "bad", "answer": str(n)} for n in (1, 2)]
    found = m.subject(folder, rows)
    assert [one["labels"] for one in found.examples] == [0, 1]
    assert "The labels in 'answer' are numbers from 1 to 2, so the answers were counted from 1." in found.notes
    assert m.subject(folder, [{**row, "answer": i} for i, row in enumerate(rows)]).examples[1]["labels"] == 1


def test_positions_behind_that_of_padding(tmp_path: Path) -> None:
    """RoBERTa's first token has position 2: of 40 positions, 38 are of tokens."""
    torch.manual_seed(0)
    config = RobertaConfig(**{**m.TEXT, "max_position_embeddings": 40, "pad_token_id": 1}, type_vocab_size=1, **TAGS)
    folder = m.save(RobertaForTokenClassification(config), tmp_path / "model", m.tokenizer())
    rows = [{"tokens": ["good"] * 60, "ner_tags": ["O"] * 60}]
    found = m.subject(folder, rows)
    assert len(found.examples[0]["input_ids"]) == 38
    assert "Of the first 1 texts, 1 have more than 38 tokens and are cut (--max-length)." in found.notes
    assert m.loss_of(folder, rows) > 0
    with pytest.raises(InputError, match="--max-length 39 is more than the 38 tokens that the model can take"):
        m.subject(folder, rows, max_length=39)


def test_tokens_that_the_model_does_not_know(tmp_path: Path) -> None:
    folder = m.bert(tmp_path / "model", "SequenceClassification")
    tokens = m.tokenizer()
    tokens.add_tokens(["zebra"])
    tokens.save_pretrained(folder)
    rows = [{"text": "good", "label": 0}, {"text": "a zebra", "label": 1}]
    found = m.subject(folder, rows)
    assert found.examples[0]["labels"] == 0
    with pytest.raises(
        InputError, match=r"rows 1 to 1 is one with the token \d+, and the model knows .* resize_token_em"
    ):
        found.examples[1]
