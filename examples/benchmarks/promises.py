"""What each way to divide n labeled examples promises, beside the true error: bounds, violations, paired differences.

    python examples/benchmarks/promises.py --output results/promises.json --sizes 200 500 1000 --draws 40
    python examples/benchmarks/promises.py --data digits --sizes 200 --draws 5      # without ../shared/data
    python examples/benchmarks/promises.py --sizes 200 1000 --draws 40 --certified 20   # PAC-Bayes in the first 20

A logistic head on fixed features: MiniLM's of tweets, or 500 random ReLU features of MNIST (odd or even; ``digits`` are
the small ones of scikit-learn).  Every draw takes n examples at random, and 4,000 others show the true error; all ways
see the same n.  δ = 0.05.  The head's penalty is one for each data set, for all ways and sizes.  Draws that are in the
output already are not made again.  The certificates are of the same heads on the same n, by at most 1,000 draws of the
noise; their true error is that of the head without noise.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from hf_pacgen.certify.certify import certify
from hf_pacgen.certify.splits import train_prior
from hf_pacgen.config import CertificateConfig
from hf_pacgen.maths.held_out_bounds import exact_error_bound
from hf_pacgen.maths.progressive import chernoff_bound, progressive_tilt
from hf_pacgen.promises.expected import first_guess, progressive_bound, share_out

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
DELTA, TEST, UNLABELED = 0.05, 4_000, 2_000
PENALTY = {"tweets": 0.1, "mnist": 0.01, "digits": 0.01}
Array = numpy.ndarray[Any, Any]
Predict = Callable[[Array], Array]


def load(name: str, count: int) -> tuple[Array, Array]:
    """Features and labels."""
    if name == "tweets":
        from certificate import frozen_features, tweets

        columns = frozen_features(*tweets(SHARED, "train", count))
        return columns["features"].numpy(), columns["labels"].numpy()
    if name == "mnist":
        import io

        from PIL import Image
        from pyarrow import parquet

        rows = parquet.read_table(SHARED / "mnist" / "train.parquet").slice(0, count).to_pydict()
        pictures = [numpy.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in rows["image"]]
        pixels, digits = numpy.stack(pictures).reshape(len(pictures), -1) / 255, numpy.array(rows["label"])
    elif name == "digits":
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
        pixels = pixels / 16
    else:
        raise ValueError(f"data must be tweets, mnist or digits; got {name!r}.")
    draw = numpy.random.default_rng(0)
    weights = draw.normal(size=(pixels.shape[1], 500)) / math.sqrt(pixels.shape[1] / 10)
    features = numpy.maximum(0, (pixels - pixels.mean(0)) @ weights + draw.normal(size=500))
    return features / features.std(), digits % 2


def fitted(features: Array, labels: Array, penalty: float) -> Predict:
    """A logistic head; of a single class it always says that one."""
    if len(set(labels.tolist())) < 2:
        only = labels[0]
        return lambda other: numpy.full(len(other), only)
    model: Predict = LogisticRegression(C=penalty, max_iter=500).fit(features, labels).predict
    return model


def one_draw(features: Array, labels: Array, count: int, seed: int, penalty: float) -> dict[str, list[float]]:
    """By way: the bound, the true error, and how many examples were trained on, as a share of n."""
    order = numpy.random.default_rng(seed).permutation(len(labels))
    rows, rest = order[:count], order[count:]
    x, y = features[rows], labels[rows]
    test, others = rest[:TEST], rest[TEST : TEST + UNLABELED]

    def model(end: int) -> tuple[Predict, float]:
        made = fitted(x[:end], y[:end], penalty)
        return made, float((made(features[test]) != labels[test]).mean())

    def errors(made: Predict, start: int, end: int) -> int:
        return int((made(x[start:end]) != y[start:end]).sum())

    found: dict[str, list[float]] = {}
    for share in (0.5, 0.67, 0.8):
        part = round(share * count)
        made, true = model(part)
        found[f"split {share:g}"] = [exact_error_bound(errors(made, part, count), count - part, DELTA), true, share]
        if share == 0.5 and len(others):
            whole, its = model(count)
            differ = int((whole(features[others]) != made(features[others])).sum())
            bound = exact_error_bound(errors(made, part, count), count - part, DELTA / 2)
            gap = exact_error_bound(differ, len(others), DELTA / 2)
            found["all, by disagreement"] = [min(1.0, bound + gap), its, 1.5]
    first, size = share_out(count)
    half = first // 2
    guess = first_guess(errors(model(half)[0], half, first), first - half)
    made_of = [model(start) for start in range(first, count, size)]
    wrong = [
        errors(made, start, start + size) for (made, _), start in zip(made_of, range(first, count, size), strict=True)
    ]
    true = float(numpy.mean([error for _, error in made_of]))
    cost = (half + sum(range(first, count, size))) / count
    found["progressive"] = [progressive_bound(wrong, size, DELTA, guess)[0], true, cost]
    tilt = progressive_tilt(guess, size * len(wrong), DELTA)
    found["progressive, Chernoff"] = [
        chernoff_bound(wrong, [size] * len(wrong), DELTA, [tilt] * len(wrong)),
        true,
        cost,
    ]
    return found


class Head(nn.Module):
    """A logistic head as a model, whose two logits are those of the classes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, 2)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.linear(features)
        return {"logits": logits} | ({} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)})


def certified(features: Array, labels: Array, count: int, seed: int, penalty: float) -> dict[str, list[float]]:
    """PAC-Bayes, by prior, on the examples of :func:`one_draw`."""
    order = numpy.random.default_rng(seed).permutation(len(labels))
    inputs = torch.tensor(features[order[: count + TEST]]).float()
    targets = torch.tensor(labels[order[: count + TEST]]).long()
    batches = [{"features": inputs[i : i + 8], "labels": targets[i : i + 8]} for i in range(0, count, 8)]

    def fit(model: nn.Module, part: list[dict[str, Tensor]]) -> None:
        x, y = (torch.cat([batch[name] for batch in part]).numpy() for name in ("features", "labels"))
        made = LogisticRegression(C=penalty, max_iter=500).fit(x, y)
        # the difference of the two logits is that of the head; of all such weights these are the smallest
        weight, bias = torch.tensor(made.coef_[0] / 2), torch.tensor(made.intercept_[0] / 2)
        with torch.no_grad():
            model.get_parameter("linear.weight").copy_(torch.stack([-weight, weight]))
            model.get_parameter("linear.bias").copy_(torch.stack([-bias, bias]))

    config = CertificateConfig(draws=1000, delta=DELTA, seed=seed)

    def row(model: nn.Module, part: list[dict[str, Tensor]], prior: Any, share: float) -> list[float]:
        bound = certify(model, part, prior=prior, config=config, progress=False).bound
        with torch.no_grad():
            wrong = model(inputs[count:])["logits"].argmax(-1) != targets[count:]
        return [bound, wrong.double().mean().item(), share]

    whole = Head(inputs.shape[1])
    fit(whole, batches)
    found = {"PAC-Bayes, prior N(0, τ²)": row(whole, batches, "zero", 1.0)}
    half = train_prior(Head(inputs.shape[1]), batches, fit, seed=seed)
    found["PAC-Bayes, prior of half as it is"] = row(half.model, half.certificate_data, half, 0.5)
    fit(half.model, batches)
    found["PAC-Bayes, prior of half, posterior of all"] = row(half.model, half.certificate_data, half, 1.5)
    return found


def table(name: str, count: int, draws: dict[str, dict[str, list[float]]]) -> Table:
    """Means over the draws, in percent, and the difference to half for training, paired."""
    shown = Table(title=f"{name}, n = {count:,}, {len(draws)} draws", title_justify="left")
    for heading in ("way", "bound", "true", "violated", "bound - half's, 95 %", "cost"):
        shown.add_column(heading, justify="left" if heading == "way" else "right")
    for way in next(iter(draws.values())):
        pairs = [(draw[way], draw["split 0.5"][0]) for draw in draws.values() if way in draw]
        bounds, trues, costs = numpy.array([found for found, _ in pairs]).T
        gap = 100 * (bounds - numpy.array([half for _, half in pairs]))
        error = 1.96 * gap.std(ddof=1) / math.sqrt(len(gap)) if len(gap) > 1 else math.nan
        cells = (f"{100 * bounds.mean():.1f}", f"{100 * trues.mean():.1f}", f"{(bounds < trues).mean():.3f}")
        shown.add_row(way, *cells, f"{gap.mean():+.2f} ± {error:.2f}", f"{costs.mean():.2f}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["tweets", "mnist"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[200, 500, 1000])
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--certified", type=int, default=0, help="draws of which PAC-Bayes certificates are made, too")
    parser.add_argument("--rows", type=int, default=7_000, help="examples that are read at most")
    parser.add_argument("--output", type=Path, default=Path("promises.json"))
    arguments = parser.parse_args()
    known: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    for name in arguments.data:
        features, labels = load(name, arguments.rows)
        for count in arguments.sizes:
            draws = known.setdefault(name, {}).setdefault(str(count), {})
            for seed in range(arguments.draws):
                if str(seed) not in draws:
                    draws[str(seed)] = one_draw(features, labels, count, seed, PENALTY[name])
                    arguments.output.write_text(json.dumps(known, indent=1) + "\n")
            for seed in range(min(arguments.certified, arguments.draws)):
                if not any(way.startswith("PAC-Bayes") for way in draws[str(seed)]):
                    draws[str(seed)] |= certified(features, labels, count, seed, PENALTY[name])
                    arguments.output.write_text(json.dumps(known, indent=1) + "\n")
            Console(width=110).print(table(name, count, draws))


if __name__ == "__main__":
    main()
