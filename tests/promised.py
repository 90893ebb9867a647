"""Heads on random features whose true error is known, and draws of held-out examples for them."""

from __future__ import annotations

import functools
import math
from typing import Any

import datasets
import saved_models
import torch
from certificates import Head, batches, trained
from torch import Tensor, nn

from hf_pacgen import promise
from hf_pacgen.maths.bounded_losses import Answers, PromisedLoss
from hf_pacgen.promises.how import TrainedPromise, train_and_promise
from hf_pacgen.results.promise import Promise

DELTA, DRAWS = 0.2, 400
MOST = DELTA + 2 * math.sqrt(DELTA * (1 - DELTA) / DRAWS)
"""How often a bound may fail that holds with probability 1 - δ, as far as so many draws can tell."""
LEAST = DELTA / 20
NOISE = 0.7


def head() -> Head:
    """A head that looks at the first feature, which the label follows up to noise."""
    model = Head(3)
    with torch.no_grad():
        model.linear.weight.copy_(torch.tensor([[-1.5, 0.0, 0.0], [1.5, 0.0, 0.0]]))
        model.linear.bias.zero_()
    return model.eval()


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Independent examples of the one distribution."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 3, generator=generator)
    return features, (features[:, 0] + NOISE * torch.randn(count, generator=generator) > 0).long()


def held_out(count: int, seed: int, size: int | None = None) -> list[dict[str, Tensor]]:
    return batches(*drawn(count, seed), size or count)


def promised(model: Any, data: Any, **options: Any) -> Promise:
    return promise(model, data, **{"progress": False, "batch_size": 4, **options})


def logits_and_labels(count: int, seed: int) -> tuple[Tensor, Tensor]:
    features, labels = drawn(count, seed)
    with torch.no_grad():
        return head().linear(features), labels


@functools.cache
def truth() -> dict[str, float]:
    """The true losses of the head, by many examples."""
    logits, labels = logits_and_labels(400_000, 10**6)
    given = Answers(
        logits=logits[:, None], labels=labels[:, None], counted=torch.ones(len(labels), 1).bool(), nothing=0
    )
    return {loss.value: float(loss.facts.of(given).mean()) for loss in PromisedLoss}


def by_hand(data: Any) -> tuple[int, int]:
    wrong = [head()(batch["features"])["logits"].argmax(-1) != batch["labels"] for batch in data]
    return int(torch.cat(wrong).sum()), sum(map(len, wrong))


def rate(failed: list[bool]) -> float:
    assert len(failed) == DRAWS
    return sum(failed) / DRAWS


NAMES: dict[str, Any] = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}


def texts(start: int, count: int) -> list[tuple[str, str]]:
    """Different texts, whose label is whether a good word stands in them."""
    every = [f"{a} {b} {c}" for a in saved_models.WORDS for b in saved_models.WORDS for c in saved_models.WORDS]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [every[i] for i in order[start : start + count]]
    return [(text, "positive" if {"good", "fine"} & set(text.split()) else "negative") for text in chosen]


NUM_ROWS = 120


def rows(count: int = NUM_ROWS, seed: int = 0) -> datasets.Dataset:
    features, labels = drawn(count, seed)
    return datasets.Dataset.from_dict({"features": features.tolist(), "labels": labels.tolist()})


def columns(part: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(part["features"][:]), torch.tensor(part["labels"][:])


def fit(model: nn.Module, part: Any) -> None:
    trained(model, *columns(part))  # type: ignore[arg-type]


def start() -> Head:
    torch.manual_seed(0)
    return Head(3)


def trained_promise(train: Any = fit, data: Any = None, **options: Any) -> TrainedPromise:
    given = {"progress": False, "batch_size": 64, **options}
    return train_and_promise(start(), rows() if data is None else data, train, **given)
