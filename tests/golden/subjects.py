"""The models that are measured, and their data."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

MODELS = ("bert", "llama", "vit", "custom")
SIZES = (4, 3, 4)  # batches that do not share evenly over two processes


class Tagger(nn.Module):
    """A module that transformers does not know: tied, frozen and unused weights, and no loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tiny.VOCABULARY, 4)
        self.mix = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.back = nn.Linear(6, 4, bias=False)
        self.unused = nn.Linear(2, 2)
        self.frozen = nn.Parameter(torch.tensor(0.8), requires_grad=False)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Tensor:
        hidden = self.norm(functional.gelu(self.mix(self.embedding(input_ids))))
        return functional.linear(self.frozen * self.back(hidden), self.embedding.weight)


def token_loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """The summed cross-entropy of a :class:`Tagger`, and the number of tokens."""
    logits, labels = model(**batch), batch["labels"]
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"), labels.numel()


def token_error(model: nn.Module, batch: Any) -> Tensor:
    """The share of wrong tokens of each example."""
    return (model(**batch).argmax(-1) != batch["labels"]).double().mean(-1)


def model(name: str, dtype: torch.dtype) -> nn.Module:
    made = Tagger() if name == "custom" else tiny.MODELS[name]()
    return fill(made.double(), 0.35).to(dtype).eval()


def fill(made: nn.Module, width: float) -> nn.Module:
    """Uniform weights, of norms about 1, that are the same on every machine: torch's own first weights are not.

    Its normal numbers come from vector code of float32, whose last bits depend on the CPU.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            whole = torch.randint(-(1 << 20), 1 << 20, parameter.shape, generator=generator)
            center = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(center + width * whole.double() / (1 << 20))
    return made


def examples(name: str, count: int, dtype: torch.dtype) -> dict[str, Tensor]:
    if name != "custom":
        return tiny.examples(name, count, ignore=0.3, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, tiny.VOCABULARY, (count, 5), generator=generator)
    return {"input_ids": tokens, "labels": tokens.roll(1, dims=1)}


def batches(name: str, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    return tiny.split(examples(name, sum(SIZES), dtype), *SIZES)


def own_loss(name: str) -> dict[str, Any]:
    """The loss that a measure has to be given, where the model has none."""
    return {"loss_fn": token_loss} if name == "custom" else {}


def ramp(made: nn.Module, scale: float) -> dict[str, Tensor]:
    """A fixed vector with entries of both signs for every trainable weight."""
    trainable = {name: p for name, p in made.named_parameters() if p.requires_grad}
    return {
        name: (scale * torch.arange(1, p.numel() + 1, dtype=torch.float64).mul(0.7).sin()).view(p.shape).to(p.dtype)
        for name, p in trainable.items()
    }


def trainable_bert(dtype: torch.dtype, vocabulary: int = tiny.VOCABULARY) -> nn.Module:
    """An encoder with dropout, which draws random numbers of its own in every step."""
    return fill(tiny.bert(vocab_size=vocabulary).double(), 0.1).to(dtype)


def trainable_llama(dtype: torch.dtype) -> nn.Module:
    """A decoder with tied embeddings."""
    config = LlamaConfig(**tiny.SIZES, vocab_size=tiny.VOCABULARY, max_position_embeddings=16, tie_word_embeddings=True)
    return fill(LlamaForCausalLM(config).double(), 0.1).to(dtype)


class Examples(Dataset[dict[str, Tensor]]):
    """Sixty-four examples for the Trainer."""

    def __init__(self, name: str, dtype: torch.dtype, count: int = 64) -> None:
        self.batch = examples(name, count, dtype)

    def __len__(self) -> int:
        return len(self.batch["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: values[index] for key, values in self.batch.items()}
