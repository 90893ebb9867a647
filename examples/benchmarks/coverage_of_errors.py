"""Does the ± of a score hold? Scores with many seeds beside the value of all data with exact curvature.

    python examples/benchmarks/coverage_of_errors.py --output coverage.json
    python examples/benchmarks/coverage_of_errors.py --subjects residual --seeds 10

Four small networks, trained here in seconds: a LeNet on scikit-learn's digits, a BERT on a rule of tokens, a GPT-2 on
a Markov chain, and a BERT that knows nothing on few examples, where most of the curvature is not Gauss-Newton's.
Each is scored at the default settings on all of its data and on half of it (``max_examples``), with another seed each
time. A seed moves the probes, the displacements, their batches and the subset. The reference has the exact diagonal on
all data; its ρ is the median of many displacements with converged norms, on batches of the same size, or on all data.
What is counted is how often value ± 1.96 stderr has the reference in it; 85 to 100 % is wanted.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, HfArgumentParser

from hf_pacgen import PACGenResult, ScoreConfig, hessian_lipschitz, pacgen
from hf_pacgen.results.lipschitz import LipschitzEstimate

Examples = dict[str, Tensor]
VALUES = ("hessian_trace", "hessian_lipschitz", "score", "kl_complexity", "kl_excess", "kl_curvature")
BATCH = 8


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    output: str = field(default="", metadata={"help": "Write all figures to this JSON file."})
    subjects: list[str] = field(default_factory=lambda: list(SUBJECTS), metadata={"help": "Which networks."})
    seeds: int = field(default=50, metadata={"help": "Scores of every network and setting."})
    directions: int = field(default=100, metadata={"help": "Displacements of the reference's ρ."})


class Rows(Dataset[Examples]):
    """A table of examples."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(next(iter(self.examples.values())))

    def __getitem__(self, index: int) -> Examples:
        return {name: values[index] for name, values in self.examples.items()}


@dataclass(frozen=True)
class Subject:
    """A trained network and its data."""

    model: nn.Module
    examples: Examples


class LeNet(nn.Module):
    """Two convolutions and a linear layer, on images of 8 × 8."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, stride=2), nn.Conv2d(4, 8, 2)
        self.classifier = nn.Linear(32, 10)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits, and the loss where labels are given."""
        logits = self.classifier(self.second(self.first(pixel_values).tanh()).tanh().flatten(1))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def fit(model: nn.Module, examples: Examples, *, loss: float, steps: int = 2000) -> nn.Module:
    """AdamW on all examples until the loss is reached."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        value = model(**examples)["loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if value.item() <= loss:
            break
    return model.eval()


def lenet() -> Subject:
    """128 digits, to a loss of 0.1."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images[:128], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    examples = {"pixel_values": pixels, "labels": torch.tensor(labels[:128])}
    return Subject(fit(LeNet(), examples, loss=0.1), examples)


def bert(count: int = 96, loss: float = 0.2) -> Subject:
    """Which of two tokens occurs more often, with every tenth label wrong."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=8, intermediate_size=16, max_position_embeddings=8, attn_implementation="eager", **sizes
    )
    tokens = torch.randint(2, 8, (count, 7))
    labels = ((tokens == 2).sum(1) > (tokens == 3).sum(1)).long()
    labels[::10] = 1 - labels[::10]
    examples = {"input_ids": tokens, "labels": labels}
    return Subject(fit(BertForSequenceClassification(config).eval(), examples, loss=loss), examples)


def gpt2() -> Subject:
    """Texts of a Markov chain."""
    torch.manual_seed(2)
    config = GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=2, attn_implementation="eager")
    chances = (2 * torch.randn(8, 8)).softmax(1)
    tokens = [torch.randint(0, 8, (64,))]
    for _ in range(7):
        tokens.append(torch.multinomial(chances[tokens[-1]], 1).squeeze(1))
    texts = torch.stack(tokens, 1)
    examples = {"input_ids": texts, "labels": texts}
    return Subject(fit(GPT2LMHeadModel(config).eval(), examples, loss=1.2, steps=300), examples)


def residual() -> Subject:
    """The BERT with large random weights below a small head, on 32 examples: outputs that bend, and hardly differ."""
    found = bert(count=32, loss=math.inf)
    torch.manual_seed(10)
    with torch.no_grad():
        for weights in found.model.parameters():
            if weights.dim() == 2:
                weights.copy_(0.6 * torch.randn_like(weights))
        found.model.classifier.weight.mul_(0.3)  # type: ignore[union-attr, operator]
    return found


SUBJECTS: dict[str, Callable[[], Subject]] = {"lenet": lenet, "bert": bert, "gpt2": gpt2, "residual": residual}


def reference(subject: Subject, directions: int, batch_size: int) -> tuple[PACGenResult, LipschitzEstimate]:
    """The exact diagonal of all data, with the ρ of many displacements on batches of this size."""
    count = len(subject.examples["labels"])
    rough = ScoreConfig(lipschitz_directions=directions, lipschitz_iterations=12, seed=999)
    rho = hessian_lipschitz(subject.model, Rows(subject.examples), config=rough, batch_size=batch_size, progress=False)
    config = ScoreConfig(estimator="exact", lipschitz_directions=0, rho=rho.value)
    exact = pacgen(subject.model, Rows(subject.examples), config=config, batch_size=count, progress=False)
    return exact, rho


def covered(subject: Subject, exact: PACGenResult, seeds: int, **settings: Any) -> dict[str, Any]:
    """How often ± 1.96 stderr has the exact value in it, and how wide it is, for each value."""
    count = len(subject.examples["labels"])
    inside: dict[str, list[bool]] = {name: [] for name in VALUES}
    widths: dict[str, list[float]] = {name: [] for name in VALUES}
    for seed in tqdm(range(seeds), leave=False, disable=None):
        config = ScoreConfig(seed=seed, num_training_examples=count, **settings)
        data = Rows(subject.examples)
        result = pacgen(subject.model, data, config=config, batch_size=BATCH, progress=False)
        for name in VALUES:
            stderr, true = getattr(result, f"{name}_stderr"), getattr(exact, name)
            if stderr is not None:  # unknown, and said to be so: no interval
                inside[name].append(abs(getattr(result, name) - true) <= 1.96 * stderr)
                widths[name].append(stderr / abs(true))
    return {
        name: {
            "exact": getattr(exact, name),
            "covered": sum(inside[name]) / len(inside[name]) if inside[name] else None,
            "intervals": len(inside[name]),
            "stderr": statistics.median(widths[name]) if widths[name] else None,
        }
        for name in VALUES
    }


def measured(name: str, seeds: int, directions: int) -> dict[str, Any]:
    """All settings of one network."""
    subject = SUBJECTS[name]()
    count = len(subject.examples["labels"])
    exact, _ = reference(subject, directions, BATCH)
    _, whole = reference(subject, max(2, directions // 4), count)
    gauss_newton = ScoreConfig(estimator="gauss_newton", passes=20, lipschitz_directions=0, rho=1.0)
    part = pacgen(subject.model, Rows(subject.examples), config=gauss_newton, batch_size=count, progress=False)
    return {
        "m": exact.num_parameters,
        "examples": count,
        "loss": exact.loss,
        "trace, Gauss-Newton's share": part.hessian_trace / exact.hessian_trace,
        "rho of batches / of all data": exact.hessian_lipschitz / whole.value,
        "all examples": covered(subject, exact, seeds),
        "half of them": covered(subject, exact, seeds, max_examples=count // 2),
        "rho of all data": covered(
            subject, dataclasses.replace(exact, hessian_lipschitz=whole.value), seeds, estimator="hutchinson"
        )["hessian_lipschitz"],
    }


def main(command_line: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and write."""
    parser = HfArgumentParser(Arguments)  # type: ignore[arg-type]
    (arguments,) = parser.parse_args_into_dataclasses(sys.argv[1:] if command_line is None else command_line)
    if unknown := set(arguments.subjects) - set(SUBJECTS):
        raise SystemExit(f"--subjects takes some of {', '.join(SUBJECTS)}; got {', '.join(sorted(unknown))}.")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in arguments.subjects:
        found[name] = measured(name, arguments.seeds, arguments.directions)
        print(name, json.dumps(found[name], indent=1))
        if arguments.output:
            Path(arguments.output).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
