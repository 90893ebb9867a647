"""How often each promise fails where the truth is known, and what warm starts cost and gain, by many draws.

    python examples/benchmarks/promises_simulated.py --output results/promises_simulated.json     # an hour on one core
    python examples/benchmarks/promises_simulated.py --draws 20 --parts certificates

``certificates``: labels are the sign of the first of three normal features, up to noise; a head is trained on 60
examples (or on half of them), and certified with δ = 0.2.  The certificate is of the noise that was certified, and so
is the truth: the mean error of fresh draws of it on 4,000 other examples.  ``progressive``: heads trained by Adam on
20 features, with the ways to start each training; the cost is in trainings on all examples with as many epochs.
Draws that are in the output already are not made again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from promises import Head
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from hf_pacgen.certify.draws import NoiseStream
from hf_pacgen.certify.splits import train_prior
from hf_pacgen.config import CertificateConfig
from hf_pacgen.promises import train_and_promise

DELTA, COUNT, TEST = 0.2, 60, 4_000
Batch = dict[str, Tensor]
CERTIFY: Any = importlib.import_module("hf_pacgen.certify.certify")


def drawn(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Independent examples, of which the best classifier gets about a fifth wrong."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, size, generator=generator)
    return features, (features[:, 0] + 0.7 * torch.randn(count, generator=generator) > 0).long()


def batches(features: Tensor, labels: Tensor) -> list[Batch]:
    return [{"features": features[i : i + 5], "labels": labels[i : i + 5]} for i in range(0, len(labels), 5)]


def fit(model: nn.Module, part: list[Batch]) -> None:
    features, labels = (torch.cat([batch[name] for batch in part]) for name in ("features", "labels"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        model(features, labels)["loss"].backward()
        optimizer.step()


def certified(model: nn.Module, part: list[Batch], prior: Any, seed: int, **settings: Any) -> list[float]:
    """The certified error, and the true error of the noise that was certified."""
    found: list[Any] = []

    def noted(case: Any, chosen: Any) -> Any:
        found.append(chosen.posterior)
        return CERTIFIED_DRAWS(case, chosen)

    config = CertificateConfig(**{"draws": 60, "delta": DELTA, "seed": seed, "refine_steps": 10, **settings})
    with mock.patch.object(CERTIFY, "certified_draws", noted):
        bound = CERTIFY.certify(model, part, prior=prior, config=config, progress=False).bound
    features, labels = drawn(TEST, 3, 10**6)
    noise = NoiseStream(found[0], 10**6, "truth", 0, most=50)
    wrong = 0.0
    for draw in range(50):
        moved = {name: mean + noise[draw][name] for name, mean in found[0].means.items()}
        logits = features @ moved["linear.weight"].T + moved["linear.bias"]
        wrong += float((logits.argmax(-1) != labels).double().mean()) / 50
    return [bound, wrong]


CERTIFIED_DRAWS: Any = CERTIFY.certified_draws


def certificates(seed: int) -> dict[str, list[float]]:
    """By path: the certified and the true error of one draw of the examples."""
    data = batches(*drawn(COUNT, 3, seed))
    torch.manual_seed(seed)
    whole = Head(3)
    start = {name: value.detach().clone() for name, value in whole.named_parameters()}
    fit(whole, data)
    half = train_prior(Head(3), data, fit, seed=seed)
    mine: dict[str, Any] = {"seed": seed}
    found = {
        "prior N(0, τ²)": certified(whole, data, "zero", **mine),
        "initial weights": certified(whole, data, start, **mine),
        "uniform noise, Hoeffding": certified(
            whole, data, "zero", **mine, bound="hoeffding", distribution="uniform", epsilon=1.0
        ),
        "prior of half as it is": certified(half.model, half.certificate_data, half, **mine),
    }
    fit(half.model, data)
    return found | {"prior of half, posterior of all": certified(half.model, half.certificate_data, half, **mine)}


WAYS: dict[str, dict[str, Any]] = {
    "split": {"how": "split"},
    "cold": {"how": "progressive", "warm_start": False},
    "warm, new block and as many old": {"how": "progressive"},
    "warm, all so far": {"how": "progressive", "warm_start": "all"},
    "warm, all so far, half of the epochs": {"how": "progressive", "warm_start": "all", "epochs": 0.5},
}
EPOCHS = 20


def progressive(seed: int) -> dict[str, list[float]]:
    """By way: the bound, the true error, and the cost, for 200 examples."""
    features, labels = drawn(200, 20, seed)
    table = Dataset.from_dict({"features": features.tolist(), "labels": labels.tolist()}).with_format("torch")
    test, truth = drawn(TEST, 20, 10**6)
    found = {}
    for way, settings in WAYS.items():
        options = {"epochs": 1.0, **settings}
        epochs, kept = options.pop("epochs"), {}
        keep = options.get("warm_start") == "all"
        if keep:  # cold for the library, which then gives all rows so far; the weights are carried over here
            options["warm_start"] = False
        seen = [0.0]

        def train(model: nn.Module, part: Any, keep=keep, kept=kept, epochs=epochs, seen=seen) -> None:  # type: ignore[no-untyped-def]
            columns = part[:]
            x, y = columns["features"], columns["labels"]
            share = epochs if kept else 1.0
            if keep and kept:
                model.load_state_dict(kept)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
            generator = torch.Generator().manual_seed(seed)
            for _ in range(round(share * EPOCHS)):
                for rows in torch.randperm(len(y), generator=generator).split(10):
                    optimizer.zero_grad()
                    model(x[rows], y[rows])["loss"].backward()
                    optimizer.step()
            kept.update({name: value.clone() for name, value in model.state_dict().items()})
            seen[0] += share * len(y) / 200

        torch.manual_seed(seed)
        made = train_and_promise(
            Head(20), table, train, delta=0.05, seed=seed, progress=False, batch_size=64, **options
        )
        true = 0.0
        with torch.no_grad():
            for number, chance in enumerate(made.probabilities):
                true += chance * float((made.load(number)(test)["logits"].argmax(-1) != truth).double().mean())
        found[way] = [made.promise.error_bound, true, seen[0]]
    return found


PARTS = {"certificates": certificates, "progressive": progressive}


def table(part: str, draws: dict[str, dict[str, list[float]]]) -> Table:
    """Means, and how often a bound was below the truth."""
    shown = Table(title=f"{part}, {len(draws)} draws", title_justify="left")
    for heading in ("way", "bound", "true", "failed", "bound - the first's, 95 %", "cost"):
        shown.add_column(heading, justify="left" if heading == "way" else "right")
    first = next(iter(next(iter(draws.values()))))
    for way in next(iter(draws.values())):
        rows = [draw[way] for draw in draws.values()]
        gaps = torch.tensor([100 * (draw[way][0] - draw[first][0]) for draw in draws.values()])
        error = 1.96 * float(gaps.std()) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        failed = sum(row[0] < row[1] for row in rows) / len(rows)
        cost = f"{means[2]:.2f}" if len(means) > 2 else ""
        shown.add_row(
            way,
            *(f"{100 * mean:.1f}" for mean in means[:2]),
            f"{failed:.3f}",
            f"{gaps.mean():+.2f} ± {error:.2f}",
            cost,
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--output", type=Path, default=Path("promises_simulated.json"))
    arguments = parser.parse_args()
    known: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    for part in arguments.parts:
        draws = known.setdefault(part, {})
        for seed in range(arguments.draws if part == "certificates" else min(arguments.draws, 100)):
            if str(seed) not in draws:
                draws[str(seed)] = PARTS[part](seed)
                arguments.output.write_text(json.dumps(known, indent=1) + "\n")
        Console(width=120).print(table(part, draws))


if __name__ == "__main__":
    main()
