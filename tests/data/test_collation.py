"""Examples as batches: what is stacked, padded, counted, cut and left out."""

from __future__ import annotations

from typing import Any

import datasets
import numpy
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    BertForMultipleChoice,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from hf_pacgen import ScoreConfig, pacgen
from hf_pacgen.data.collation import AsTheTrainer, collate, model_columns
from hf_pacgen.measures.landscape import mean_loss

MODEL = tiny.make("bert")
T = torch.tensor


def test_ragged_sequences_are_padded_as_the_model_expects() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "token_type_ids": [0, 1, 1], "labels": [1, 2, 0]},
        {"input_ids": [8], "token_type_ids": [1], "labels": [2]},
    ]
    model = tiny.bert(pad_token_id=9)
    batch = collate(rows, model)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["labels"].tolist() == [[1, 2, 0], [2, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 1], [1, 0, 0]]
    assert rows[1] == {"input_ids": [8], "token_type_ids": [1], "labels": [2]}  # the examples stay as they were


@pytest.mark.parametrize("kind", [list, numpy.array, torch.tensor], ids=["lists", "arrays", "tensors"])
def test_a_padded_batch_has_the_loss_of_its_examples(kind: Any) -> None:
    """Against each example by itself: padding changes nothing."""
    rows = [{"input_ids": kind(ids), "label": label} for ids, label in (([3, 4, 5, 6], 0), ([7, 8], 2), ([9, 1, 2], 1))]
    alone = [MODEL(input_ids=T([list(map(int, r["input_ids"]))]), labels=T([r["label"]])).loss for r in rows]
    together = MODEL(**collate(rows, MODEL)).loss
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-10, atol=0)


def test_a_mask_that_is_there_is_padded_and_not_made_anew() -> None:
    rows = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 0]}, {"input_ids": [8], "attention_mask": [1]}]
    assert collate(rows, MODEL)["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0]]


def test_equal_lengths_need_no_mask_and_other_examples_are_stacked() -> None:
    assert "attention_mask" not in collate([{"input_ids": [5, 6]}, {"input_ids": [7, 8]}], MODEL)
    pairs = [(torch.zeros(2), 1), (torch.ones(2), 0)]
    x, y = collate(pairs, MODEL)
    assert x.tolist() == [[0, 0], [1, 1]] and y.tolist() == [1, 0]
    floats = collate([{"x": [0.5, 1.5], "label": 1}, {"x": [2.5, 3.5], "label": 0}], MODEL)
    assert floats["x"].dtype == torch.float32 and floats["labels"].tolist() == [1, 0]


def test_labels_make_no_mask() -> None:
    """Only ragged tokens do, and only where the model takes a mask."""
    rows = [{"labels": [1, 2, 3], "input_ids": [5, 6]}, {"labels": [1], "input_ids": [7, 8]}]
    batch = collate(rows, MODEL)
    assert "attention_mask" not in batch and batch["labels"].tolist() == [[1, 2, 3], [1, -100, -100]]
    first = collate([{"labels": [1, 2, 3], "input_ids": [5]}, {"labels": [1], "input_ids": [7, 8]}], MODEL)
    assert first["attention_mask"].tolist() == [[1, 0], [1, 1]]
    images = [{"pixel_values": torch.zeros(1, 4, 4), "labels": [1] * n} for n in (1, 2)]
    assert collate(images, tiny.make("vit")).keys() == {"pixel_values", "labels"}


@pytest.mark.parametrize("labels_first", [True, False])
def test_ragged_texts_have_the_same_loss_in_any_batches(labels_first: bool) -> None:
    """An encoder-decoder, whose labels have other lengths than its tokens."""
    sizes: Any = {"vocab_size": 12, "d_model": 4, "d_kv": 2, "d_ff": 6, "num_layers": 1, "num_heads": 2}
    sizes["decoder_start_token_id"] = 0
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**sizes)).double().eval()
    rows = []
    for i in range(8):
        row = {"input_ids": [1 + (i + k) % 10 for k in range(3 + (i * 3) % 5)], "labels": [2 + i] * (1 + i % 4)}
        rows.append({key: row[key] for key in sorted(row, reverse=labels_first)})
    for data in (rows, [row | {"input_ids": row["input_ids"][:3]} for row in rows]):
        data = datasets.Dataset.from_list(data)
        one, eight = (mean_loss(model, data, batch_size=size, progress=False) for size in (1, 8))
        assert eight == pytest.approx(one, rel=1e-6)


def test_choices_of_several_lengths_are_padded() -> None:
    rows = [
        {"input_ids": [[1, 2, 3], [4, 5]], "label": 0},
        {"input_ids": [[6], [7]], "label": 1},
    ]
    torch.manual_seed(0)
    model = BertForMultipleChoice(MODEL.config).double().eval()  # type: ignore[arg-type]
    batch = collate(rows, model)
    assert batch["input_ids"].tolist() == [[[1, 2, 3], [4, 5, 0]], [[6, 0, 0], [7, 0, 0]]]
    assert batch["labels"].tolist() == [0, 1]
    masked = [row | {"attention_mask": [[1] * len(c) for c in row["input_ids"]]} for row in rows]  # type: ignore
    assert collate(masked, model)["attention_mask"].tolist() == [[[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [1, 0, 0]]]


def test_choices_of_an_example_may_differ_while_examples_do_not() -> None:
    rows = [{"input_ids": [[1, 2], [3]], "label": 0}, {"input_ids": [[4], [5, 6]], "label": 1}]
    batch = collate(rows, BertForMultipleChoice(MODEL.config))  # type: ignore[arg-type]
    assert batch["input_ids"].tolist() == [[[1, 2], [3, 0]], [[4, 0], [5, 6]]]
    assert batch["attention_mask"].tolist() == [[[1, 1], [1, 0]], [[1, 0], [1, 1]]]


def test_a_mask_of_choices_is_made_of_their_lengths() -> None:
    """Each choice has its own: the longest of an example says nothing of the others."""
    rows = [{"input_ids": [[1, 2, 3], [4, 5]], "label": 0}, {"input_ids": [[6], [7]], "label": 1}]
    model = BertForMultipleChoice(MODEL.config)  # type: ignore[arg-type]
    assert collate(rows, model)["attention_mask"].tolist() == [[[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [1, 0, 0]]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"input_values": [0.5, 1.5]}, {"input_values": [2.5]}],
            r"The column 'input_values' has examples of different shapes \(\[2\], \[1\]\).*DataCollatorCTCWithPadding",
        ),
        (
            [{"pixel_values": torch.zeros(4, 6)}, {"pixel_values": torch.zeros(8, 6)}],
            r"'pixel_values' has .* \(\[4, 6\], \[8, 6\]\).*calls your processor on a list of examples",
        ),
        ([{"x": [0.5, 1.5]}, {"x": [2.5]}], "equal shapes, or integers. Pass collate_fn: the collator that you train"),
        ([{"x": [[1], 2]}, {"x": [3]}], r"\(no numbers, \[1\]\)"),
        ([{"x": ["a"]}, {"x": ["b"]}], r"cannot be stacked into a batch \(.*got \{'x': 'list'\}. Pass the collate_fn"),
    ],
)
def test_what_cannot_be_padded_is_refused_in_words(rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collate(rows, torch.nn.Identity())


def test_boxes_stay_with_their_images() -> None:
    rows = [
        {"pixel_values": torch.zeros(3, 4, 4), "labels": {"class_labels": [1] * n, "boxes": torch.zeros(n, 4)}}
        for n in (0, 2)
    ]

    class Detector(torch.nn.Module):
        def forward(self, pixel_values: Tensor, labels: Any = None) -> Tensor:
            return pixel_values

    batch = collate(rows, Detector())
    assert batch["pixel_values"].shape == (2, 3, 4, 4) and [len(x["boxes"]) for x in batch["labels"]] == [0, 2]
    assert batch["labels"][1]["class_labels"].tolist() == [1, 1]


def test_columns_of_a_transform_are_those_that_it_gives() -> None:
    """As in the official recipes for images, whose table has other columns."""

    def transform(examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        images = [torch.full((1, 4, 4), float(x)) for x in examples["image"]]
        return {"pixel_values": images, "labels": examples["class"], "name": ["x"] * len(images)}

    table = datasets.Dataset.from_dict({"image": [0, 1, 2, 3, 4], "class": [0, 1, 2, 0, 1], "x": [1] * 5})
    model = tiny.make("vit", dtype=torch.float32)
    batch = {"pixel_values": torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 4, 4), "labels": T([0, 1, 2, 0, 1])}
    truth = model(**batch).loss.item()
    table.set_transform(transform)
    for data in (table, datasets.Dataset.from_dict(table.to_dict()).with_transform(transform)):
        assert mean_loss(model, data, batch_size=2, progress=False) == pytest.approx(truth, rel=1e-6)
    other = table.with_transform(lambda examples: {"text": ["a"] * len(examples["image"])})
    with pytest.raises(ValueError, match=r"None of the dataset's columns \['text'\] is an input of ViT"):
        mean_loss(model, other, progress=False)


def columns(*names: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({name: [1] for name in names})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (("input_ids", "text", "label"), ["input_ids", "label"]),
        (("input_ids", "labels"), ["input_ids", "labels"]),
        (("id", "token_type_ids", "attention_mask"), ["token_type_ids", "attention_mask"]),
    ],
)
def test_columns_that_are_no_inputs_are_left_out(given: tuple[str, ...], kept: list[str]) -> None:
    assert model_columns(columns(*given), MODEL).column_names == kept
    streamed = model_columns(columns(*given).to_iterable_dataset(), MODEL)
    assert list(next(iter(streamed))) == kept


def test_an_adapter_has_the_columns_of_its_model() -> None:
    adapted = get_peft_model(tiny.make("bert"), LoraConfig(r=2, target_modules=["query"]))  # type: ignore[arg-type]
    assert model_columns(columns("input_ids", "text", "labels"), adapted).column_names == ["input_ids", "labels"]


def test_a_model_that_takes_anything_is_refused_what_it_does_not_name() -> None:
    class Anything(torch.nn.Module):
        def forward(self, x: Tensor, **others: Tensor) -> Tensor:
            return x

    assert model_columns(columns("x", "others"), Anything()).column_names == ["x"]
    with pytest.raises(ValueError, match=r"None of the dataset's columns \['text', 'label'\] is an input of Anything"):
        model_columns(columns("text", "label"), Anything())


class Padding:
    """A collator as those of transformers: every column becomes a tensor, and ragged ones are padded."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        self.seen |= set().union(*rows)
        longest = max(len(row["input_ids"]) for row in rows)
        batch = {"input_ids": [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]}
        rest = {key: [row[key] for row in rows] for key in rows[0] if key != "input_ids"}
        return {key: torch.tensor(value) for key, value in (batch | rest).items()}


def raw_rows() -> Any:
    texts = ["good movie", "bad", "the sky is blue", "what"]
    rows = [{"text": text, "idx": i, "input_ids": [i + 1] * (i + 2), "label": i % 3} for i, text in enumerate(texts)]
    return datasets.Dataset.from_list(rows)


def test_a_collator_of_ones_own_gets_what_the_trainer_gives_it(tmp_path: Any) -> None:
    model, collator = tiny.make("bert"), Padding()
    args = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=2, report_to=[], use_cpu=True)
    trainer = Trainer(model, args, train_dataset=raw_rows(), data_collator=Padding())
    for batch in trainer.get_train_dataloader():  # "text" is dropped before the collator makes tensors
        assert set(batch) == {"input_ids", "label"}
    quick = ScoreConfig(estimator="hutchinson", lipschitz_directions=0)
    rows = raw_rows().rename_column("label", "labels")
    found = pacgen(model, rows, collate_fn=collator, config=quick, batch_size=2, progress=False)
    assert collator.seen == {"input_ids", "labels"}
    alone = pacgen(
        model,
        rows.select_columns(["input_ids", "labels"]),
        collate_fn=Padding(),
        config=quick,
        batch_size=2,
        progress=False,
    )
    assert found.loss == alone.loss and found.score == alone.score


def test_a_collator_that_needs_raw_columns_gets_them() -> None:
    model = tiny.make("bert")
    draws: list[float] = []

    def collator(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        draws.append(torch.rand(1).item())
        return {
            "input_ids": torch.tensor([[len(row["text"]) % 9 + 1, 2] for row in rows]),
            "labels": torch.zeros(len(rows)).long(),
        }

    torch.manual_seed(0)
    wrapped = AsTheTrainer(collator, model)
    rows = list(raw_rows())
    assert wrapped(rows)["input_ids"][:, 0].tolist() == [2, 4, 7, 5]
    torch.manual_seed(0)
    assert draws[-1] == torch.rand(1).item()  # the try that failed drew nothing
    assert len(draws) == 2 and wrapped(rows) is not None and len(draws) == 3


@pytest.mark.parametrize(
    "asks", [lambda row: row.get("weight"), lambda row: "weight" in row, lambda r: r.pop("weight", 0)]
)
def test_a_collator_that_asks_for_a_dropped_column_is_told(asks: Any, caplog: pytest.LogCaptureFixture) -> None:
    def collator(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        for row in rows:
            asks(row)
            row.get("pixels")  # which is in no row: nothing was dropped
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}

    wrapped = AsTheTrainer(collator, tiny.make("bert"))
    rows = [{"input_ids": [1, 2], "weight": 0.5, "text": "a"}, {"input_ids": [2, 2], "weight": 1.5, "text": "b"}]
    for _ in range(2):
        wrapped(rows)
    (said,) = caplog.messages
    assert said.startswith("collate_fn asks for 'weight', which is no input of the model") and "'text'" not in said


def test_a_list_of_examples_with_its_collator_is_a_dataset() -> None:
    model = tiny.make("bert")
    whole = tiny.examples("bert", 4)
    rows = [{key: value[i].tolist() for key, value in whole.items()} for i in range(4)]
    data, config = datasets.Dataset.from_list(rows), ScoreConfig(lipschitz_directions=0)
    both = [
        pacgen(model, given, collate_fn=default_data_collator, config=config, progress=False) for given in (rows, data)
    ]
    assert both[0].loss == both[1].loss and both[0].num_examples == both[1].num_examples == 4


def test_other_rows_are_left_as_they_are() -> None:
    model = tiny.make("bert")
    for rows in ([(1, 2)], [{"input_ids": [1], "labels": 0}], [{"text": "a", "labels": 0}]):
        assert AsTheTrainer(lambda given: given, model)(rows) == rows
