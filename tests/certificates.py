"""A small classifier with its examples, and a quick certificate of it."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional

from hf_pacgen.certify.certify import Certificate, certify
from hf_pacgen.config import CertificateConfig

M = TypeVar("M", bound=nn.Module)
QUICK = CertificateConfig(eta=300.0, draws=100, refine_steps=0)


class Head(nn.Module):
    """A linear classifier as transformers would write it."""

    def __init__(self, size: int = 5, classes: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(size, classes)

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.linear(features)
        return {"logits": logits} | ({} if labels is None else {"loss": functional.cross_entropy(logits, labels)})


def problem(
    n: int = 400, size: int = 5, seed: int = 0, *, random_labels: bool = False
) -> tuple[Head, torch.Tensor, torch.Tensor]:
    """A trained head with its examples: the label is the sign of the first feature, or a fair coin."""
    torch.manual_seed(seed)
    features = torch.randn(n, size)
    labels = torch.randint(0, 2, (n,)) if random_labels else (features[:, 0] + 0.2 * torch.randn(n) > 0).long()
    return trained(Head(size), features, labels), features, labels


def trained(model: M, features: torch.Tensor, labels: torch.Tensor, steps: int = 40) -> M:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(features, labels)["loss"].backward()
        optimizer.step()
    return model.eval()


def batches(features: torch.Tensor, labels: torch.Tensor, size: int = 8) -> list[dict[str, torch.Tensor]]:
    return [{"features": features[i : i + size], "labels": labels[i : i + size]} for i in range(0, len(labels), size)]


def certified(model: nn.Module, data: Any, config: CertificateConfig = QUICK, **kwargs: Any) -> Certificate:
    return certify(model, data, config=config, **{"prior": "zero", "progress": False, **kwargs})


def documents(count: int = 24, length: int = 9) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(4, 16, (count, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": tokens[i : i + 4], "labels": tokens[i : i + 4].clone()} for i in range(0, count, 4)]
