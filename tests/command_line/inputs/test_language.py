"""The loss of a language model is that of the tokens it was trained to say, as TRL and the Trainer count them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import task_models as m
import torch
from torch.nn import functional
from transformers import DataCollatorForLanguageModeling

from hf_pacgen.command_line.inputs.language import hidden
from hf_pacgen.errors import InputError

PROMPTS = [
    {"prompt": "what color is the sky ?", "completion": " blue ."},
    {"prompt": "the movie was", "completion": " good good good"},
    {"prompt": "was the movie", "completion": " bad"},
]
CHATS = [
    [("user", "what color is the sky ?"), ("assistant", "blue .")],
    [("user", "the movie ?"), ("assistant", "good"), ("user", "was the sky ?"), ("assistant", "was blue")],
]
MESSAGES = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in CHATS]
TURNS = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in MESSAGES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A language model for every chat template."""
    made: dict[str | None, Path] = {}

    def get(template: str | None = None) -> Path:
        if template not in made:
            made[template] = m.llama(tmp_path_factory.mktemp("llama") / "model", template=template)
        return made[template]

    return get


def by_hand(folder: Path, rows: list[tuple[list[int], int]]) -> float:
    """Cross-entropy of the tokens of each row from a place on, by plain torch."""
    model, _ = m.loaded(folder, "CausalLM")
    total, count = 0.0, 0
    for ids, start in rows:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        first = max(start, 1)
        total += functional.cross_entropy(logits[first - 1 : -1], torch.tensor(ids[first:]), reduction="sum").item()
        count += len(ids) - first
    return total / count


def test_only_the_completion_counts(folder: Any) -> None:
    _, tokens = m.loaded(folder(), "CausalLM")
    rows = []
    for row in PROMPTS:
        ids = tokens(row["prompt"] + row["completion"] + "[SEP]")["input_ids"]
        rows.append((ids, len(tokens(row["prompt"])["input_ids"])))
    assert m.loss_of(folder(), PROMPTS) == pytest.approx(by_hand(folder(), rows), rel=1e-5)
    # the prompt alone, as it was scored once, has another loss
    prompts = [(tokens(row["prompt"])["input_ids"], 0) for row in PROMPTS]
    assert m.loss_of(folder(), PROMPTS, text_column="prompt") == pytest.approx(by_hand(folder(), prompts), rel=1e-5)
    assert m.loss_of(folder(), PROMPTS) != pytest.approx(by_hand(folder(), prompts), rel=1e-2)


def test_columns_of_any_name_and_no_end_token(folder: Any) -> None:
    _, tokens = m.loaded(folder(), "CausalLM")
    renamed = [{"id": str(i), "asked": r["prompt"], "said": r["completion"]} for i, r in enumerate(PROMPTS)]
    found = m.loss_of(folder(), renamed, text_column="asked", label_column="said", eos="none")
    rows = [
        (tokens(r["prompt"] + r["completion"])["input_ids"], len(tokens(r["prompt"])["input_ids"])) for r in PROMPTS
    ]
    assert found == pytest.approx(by_hand(folder(), rows), rel=1e-5)
    texts = [{"text": r["prompt"]} for r in PROMPTS]
    ended = [(tokens(r["text"] + "[SEP]")["input_ids"], 0) for r in texts]
    assert m.loss_of(folder(), texts, eos="add") == pytest.approx(by_hand(folder(), ended), rel=1e-5)


@pytest.mark.parametrize(
    ("rows", "settings"), [(PROMPTS, {}), (MESSAGES, {}), (TURNS, {}), (MESSAGES, {"alone": True})]
)
def test_tokens_and_labels_are_those_of_trl(
    rows: list[dict[str, Any]], settings: dict[str, bool], folder: Any, tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl")
    import datasets

    where = folder(m.MARKED)
    model, tokens = m.loaded(where, "CausalLM")
    alone = bool(settings)
    args = trl.SFTConfig(
        output_dir=str(tmp_path), report_to=[], max_length=100, assistant_only_loss=alone, use_cpu=True, bf16=False
    )
    trainer = trl.SFTTrainer(model, args=args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokens)
    ours = m.subject(where, rows, assistant_only=alone).examples
    for i, theirs in enumerate(trainer.train_dataset):
        assert ours[i]["input_ids"] == theirs["input_ids"]
        assert ours[i]["labels"] == theirs["labels"]


def test_turns_of_the_assistant_with_and_without_marks(folder: Any) -> None:
    model, tokens = m.loaded(folder(m.UNMARKED), "CausalLM")
    rows: list[dict[str, Any]] = []
    for row in MESSAGES:
        ids = tokens.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"]
        labels, said = [-100] * len(ids), False
        for i, token in enumerate(tokens.convert_ids_to_tokens(ids)):
            said = said or tokens.convert_ids_to_tokens(ids[max(0, i - 1) : i]) == ["assistant"]
            labels[i] = ids[i] if said else -100
            said = said and token != "<|im_end|>"
        rows.append({"input_ids": ids, "labels": labels})
    assert {len([t for t in row["labels"] if t >= 0]) for row in rows} == {3, 5}
    units = [sum(t >= 0 for t in row["labels"]) for row in rows]
    expected = m.mean_loss(model, rows, units)
    for template in (m.UNMARKED, m.MARKED):
        found = m.subject(folder(template), MESSAGES, assistant_only=True)
        assert [one["labels"] for one in found.examples] == [row["labels"] for row in rows]
        assert ("does not mark what the assistant says" in " ".join(found.notes)) == (template == m.UNMARKED)
    assert m.loss_of(folder(m.MARKED), MESSAGES, assistant_only=True) == pytest.approx(expected, rel=1e-5)
    shared = [{"conversations": [{"from": r, "value": t} for r, t in chat]} for chat in CHATS]
    renamed = [
        [{**one, "from": {"user": "human", "assistant": "gpt"}[one["from"]]} for one in r["conversations"]]
        for r in shared
    ]
    named = [{"conversations": row} for row in renamed]
    assert m.loss_of(folder(m.MARKED), named, assistant_only=True) == pytest.approx(expected, rel=1e-5)


def test_templates(folder: Any) -> None:
    _, tokens = m.loaded(folder(), "CausalLM")
    rows = [
        {"instruction": "what color ?", "input": "the sky", "output": "blue"},
        {"instruction": "was the movie good ?", "input": "", "output": "bad"},
    ]
    found = m.subject(folder(), rows, max_length=128)
    assert "by the template of Alpaca" in found.notes[0] or "by the template of Alpaca" in " ".join(found.notes)
    text = tokens.decode(found.examples[1]["input_ids"]).replace(" ##", "")
    assert "paired" not in text and "# # # Response : bad" in text and "Input" not in text
    labels = [t for t in found.examples[1]["labels"] if t >= 0]
    assert tokens.convert_ids_to_tokens(labels) == ["bad", "[SEP]"]
    asked = [f"{row['instruction']} {row['input']}\n### " for row in rows]
    expected = by_hand(
        folder(),
        [
            (tokens(text + row["output"] + "[SEP]")["input_ids"], len(tokens(text)["input_ids"]))
            for text, row in zip(asked, rows, strict=True)
        ],
    )
    template = "{instruction} {input}\\n### {output}"
    assert m.loss_of(folder(), rows, template=template) == pytest.approx(expected, rel=1e-5)


def test_a_chat_by_batches_of_any_size_and_as_a_stream(folder: Any) -> None:
    from hf_pacgen import pacgen

    where = folder(m.MARKED)
    found = m.subject(where, MESSAGES * 3, assistant_only=True)
    losses = [pacgen(found.model, found.examples, config=m.QUICK, batch_size=n, progress=False).loss for n in (1, 4)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    streamed = m.subject(where, MESSAGES * 3, assistant_only=True, streaming=True)
    result = pacgen(streamed.model, streamed.examples, config=m.QUICK, batch_size=4, progress=False)
    assert result.loss == pytest.approx(losses[0], rel=1e-5) and result.num_examples == 6
    assert "streamed" in streamed.title


def test_rows_that_are_cut_are_told(folder: Any) -> None:
    rows = [{"prompt": "good " * 20, "completion": "bad"}, {"prompt": "good", "completion": "movie " * 30}]
    notes = " ".join(m.subject(folder(), rows, max_length=12).notes)
    assert "Of the first 2 rows, 1 have no token to predict among their first 12." in notes
    assert "Of the first 2 rows, 2 have more than 12 tokens and are cut (--max-length)." in notes
    with pytest.raises(InputError, match="None of the first 1 rows has a token to predict among its first 12"):
        m.subject(folder(), rows[:1], max_length=12)


def test_masks_are_of_the_row_and_drawn_as_the_collator_draws(tmp_path: Path) -> None:
    folder = m.bert(tmp_path / "model", "MaskedLM")
    rows = [{"text": "the good movie was bad . what color is the sky ?"}, {"text": "the sky is blue"}] * 4
    found = m.subject(folder, rows, mask_share=0.4)
    model, tokens = m.loaded(folder, "MaskedLM")
    examples = [dict(found.examples[i]) for i in range(8)]
    assert examples == [dict(found.examples.__getitems__([i])[0]) for i in range(8)]  # the same in every pass
    assert examples[0] != examples[2]  # other masks in another row
    units = [sum(t >= 0 for t in one["labels"]) for one in examples]
    some = [(one, n) for one, n in zip(examples, units, strict=True) if n]
    expected = m.mean_loss(model, [one for one, _ in some], [n for _, n in some])
    assert m.loss_of(folder, rows, mask_share=0.4) == pytest.approx(expected, rel=1e-5)
    # 15 % of the tokens, of which 80 % are masked, 10 % random and 10 % left: as many as the collator's
    ids = tokens("good " * 100)["input_ids"]
    special = torch.tensor([t in tokens.all_special_ids for t in ids]).numpy()
    drawn = [hidden(ids, special, tokens, 0.15, row) for row in range(200)]
    collate = DataCollatorForLanguageModeling(tokens)
    torch.manual_seed(0)
    theirs = collate([{"input_ids": ids}] * 200)
    counts = []
    for inputs, labels in (
        (torch.tensor([d[0] for d in drawn]), torch.tensor([d[1] for d in drawn])),
        (theirs["input_ids"], theirs["labels"]),
    ):
        chosen = labels >= 0
        masked, left = inputs == tokens.mask_token_id, (inputs == labels) & chosen
        counts.append(
            [chosen.float().mean().item(), *(part.sum().item() / chosen.sum().item() for part in (masked, left))]
        )
    assert counts[0] == pytest.approx(counts[1], abs=0.02)
    with pytest.raises(InputError, match="tokenizer has no mask token"):
        m.tokenizer(mask_token=None).save_pretrained(folder)
        m.subject(folder, rows)
    with pytest.raises(ValueError, match=r"mask_share must be a share between 0 and 1; got 1.5"):
        m.subject(folder, rows, mask_share=1.5)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_sources_and_targets(kind: str, tmp_path: Path) -> None:
    folder = getattr(m, kind)(tmp_path / "model")
    rows = [{"document": "the good movie", "summary": "good movie"}, {"document": "bad", "summary": "the sky is blue"}]
    model, tokens = m.loaded(folder, "Seq2SeqLM")
    examples = [
        {**tokens("sum: " + r["document"]), "labels": tokens(text_target=r["summary"])["input_ids"]} for r in rows
    ]
    for one in examples:
        one.pop("token_type_ids", None)
    expected = m.mean_loss(model, examples, [len(one["labels"]) for one in examples])
    assert m.loss_of(folder, rows, source_prefix="sum: ") == pytest.approx(expected, rel=1e-5)
    pairs = [{"translation": {"en": "sum: " + r["document"], "de": r["summary"]}} for r in rows]
    found = m.loss_of(folder, pairs, text_column="translation.en", label_column="translation.de")
    assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match=r"a text in each of several languages.*--text-column translation.en"):
        m.subject(folder, pairs)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (
            PROMPTS,
            {"assistant_only": True},
            r"--assistant-only is for conversations, and the data has texts \(prompt -> completion\)",
        ),
        ([{"text": "a", "label": 1}], {"label_column": "label"}, "names the completion, and nothing names the prompt"),
        ([{"prompt": "good", "chosen": "a", "rejected": "b"}], {}, "The data are preferences .chosen, rejected."),
        ([{"question": "good", "other": "a"}], {}, "'question' may be a part of what the model.*--label-column"),
    ],
)
def test_what_is_refused(rows: list[dict[str, Any]], settings: dict[str, Any], message: str, folder: Any) -> None:
    with pytest.raises(InputError, match=message):
        m.subject(folder(), rows, **settings)


def test_end_tokens_that_are_not_there(tmp_path: Path) -> None:
    folder = m.llama(tmp_path / "model", eos_token=None)
    assert len(m.subject(folder, PROMPTS).examples) == 3  # nothing is added
    with pytest.raises(InputError, match="--eos add: the model's tokenizer has no end-of-sequence token"):
        m.subject(folder, PROMPTS, eos="add")


def test_targets_without_a_token(tmp_path: Path) -> None:
    folder = m.t5(tmp_path / "model")
    m.tokenizer(pairs=False).save_pretrained(folder)
    found = m.subject(folder, [{"source": "good", "target": "bad"}, {"source": "good", "target": ""}])
    with pytest.raises(InputError, match=r"Row 1 .* a target without a token"):
        found.examples[1]


def test_messages_whose_keys_differ(folder: Any) -> None:
    rows = [dict(row) for row in MESSAGES]
    rows[0] = {"messages": [{**rows[0]["messages"][0], "name": "Ann"}, *rows[0]["messages"][1:]]}
    plain, mixed = (m.subject(folder(m.MARKED), one).examples for one in (MESSAGES, rows))
    assert list(plain) == list(mixed)


def test_texts_too_short_to_hide_a_token(tmp_path: Path) -> None:
    folder = m.bert(tmp_path / "model", "MaskedLM")
    with pytest.raises(
        InputError, match=r"No token of the first 1 texts is hidden, .* too short for 15%\. Give a larger"
    ):
        m.subject(folder, [{"text": "good"}])
    assert m.loss_of(folder, [{"text": "good"}], mask_share=0.9) > 0
