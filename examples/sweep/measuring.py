"""The second stage of a run: every measure by its name, kept as soon as it is taken.

``pieces`` writes what every form of K(η) is made of (weights, diagonals); the forms themselves are in ``forms.py``.
All measures are of the training data, in evaluation mode.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import save_file
from sweep.forms import BOXES, REPEATED
from sweep.grids import RunSettings
from sweep.models import Batch, by_length, cut, data_of, model_of, take, trim
from sweep.training import mean_loss, restored, write
from torch import Tensor
from torch.func import functional_call, grad, vmap

from hf_pacgen import ScoreConfig, hessian_diagonal

LEVELS = (0.03, 0.1, 0.3, 1.0)
"""Of the relative noise of ``relative sharpness``."""
DISPLACEMENTS = 4
RADII = (0.05, 0.2)
"""Of adaptive sharpness, as parts of |w|, by which |u_i/|w_i|| is measured."""


@dataclass(frozen=True)
class Effort:
    """What the measures of one run may cost, the same for all runs of a task.

    Attributes:
        probed, passes: examples with one probe for the diagonal, and passes over the data.
        smooth, steps: examples on which ρ is measured with one displacement, and Lanczos steps.
        shaken, draws: examples that share a draw of relative noise, and antithetic pairs of draws for every level.
        top, lanczos: examples on which λ_max is measured, and Lanczos steps.
        chunk: examples whose gradients are in memory at a time.
        labels: draws of a label for every example, for the Gauss-Newton diagonal.
    """

    probed: int = 50
    passes: int = 2
    smooth: int = 64
    steps: int = 3
    shaken: int = 250
    draws: int = 4
    top: int = 250
    lanczos: int = 10
    chunk: int = 250
    labels: int = 2


SMALL = Effort(probed=16, passes=2, smooth=48, shaken=60, draws=4, top=300, lanczos=10, chunk=100)
LARGE = Effort(probed=10, passes=1, smooth=15, steps=2, shaken=75, draws=1, top=75, lanczos=5, chunk=10, labels=1)
EFFORTS = {"lenet": Effort(), "vit": SMALL, "smoke": SMALL, "encoder": LARGE, "wrong": LARGE}


class Solution:
    """A trained network with its training data, and the derivatives of its loss."""

    def __init__(self, run: RunSettings, folder: Path) -> None:
        self.run, self.path, self.effort = run, folder / run.name, EFFORTS[run.task]
        self.model = restored(run, folder)
        self.data = data_of(run)["train"]
        self.weights = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def loss(self, weights: Batch, batch: Batch) -> Tensor:
        """Mean loss of a batch at some weights."""
        return functional_call(self.model, weights, (), batch).loss  # type: ignore[no-any-return]

    def gradient(self, weights: Batch, batches: list[Batch]) -> Batch:
        """Of the mean loss of all batches."""
        total = {name: torch.zeros_like(w) for name, w in weights.items()}
        count = sum(len(batch["labels"]) for batch in batches)
        for batch in batches:
            leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
            parts = torch.autograd.grad(self.loss(leaves, batch), list(leaves.values()), materialize_grads=True)
            for sum_, part in zip(total.values(), parts, strict=True):
                sum_ += part * (len(batch["labels"]) / count)
        return total

    def product(self, weights: Batch, batches: list[Batch], vector: Batch) -> Batch:
        """The Hessian of the mean loss of all batches times a vector, by the derivative of the gradient."""
        total = {name: torch.zeros_like(w) for name, w in weights.items()}
        count = sum(len(batch["labels"]) for batch in batches)
        for batch in batches:
            leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
            inputs = list(leaves.values())
            first = torch.autograd.grad(self.loss(leaves, batch), inputs, create_graph=True, materialize_grads=True)
            slope = sum((g * vector[name]).sum() for name, g in zip(leaves, first, strict=True))
            for sum_, part in zip(
                total.values(), torch.autograd.grad(slope, inputs, materialize_grads=True), strict=True
            ):
                sum_ += part * (len(batch["labels"]) / count)
        return total

    def example_gradients(self, labels: Tensor) -> Iterator[Batch]:
        """Gradients of the loss of every example, some examples at a time, with these labels for them."""
        one = grad(lambda weights, batch: self.loss(weights, {k: v[None] for k, v in batch.items()}))
        data = by_length({**self.data, "labels": labels})
        for batch in cut(data, self.effort.chunk):
            yield vmap(one, in_dims=(None, 0))(self.weights, batch)

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """Of every class, for every example."""
        batches = cut(self.data, self.effort.shaken)
        return torch.cat([self.model(**batch).logits.double().softmax(1) for batch in batches])

    def generator(self, *key: int) -> torch.Generator:
        """The same random numbers for every run that is compared."""
        return torch.Generator().manual_seed(sum(k * 1009**i for i, k in enumerate(key)))


def norm(vector: Batch) -> float:
    """Euclidean length, over all tensors."""
    return math.sqrt(sum(float(part.double().square().sum()) for part in vector.values()))


def add(first: Batch, second: Batch, factor: float = 1.0) -> Batch:
    """first + factor · second."""
    return {name: part + factor * second[name] for name, part in first.items()}


def eigenvalues(apply: Callable[[Batch], Batch], start: Batch, steps: int) -> numpy.ndarray[Any, Any]:
    """Ritz values of a symmetric operator after some Lanczos steps, each made orthogonal to all before."""
    basis, diagonal, beside = [], [], []
    vector, length = start, norm(start)
    while len(basis) < steps and length > 1e-12 * (abs(diagonal[0]) if diagonal else 1e-12):
        basis.append({name: part / length for name, part in vector.items()})
        vector = apply(basis[-1])
        diagonal.append(dot(basis[-1], vector))
        for other in basis:
            vector = add(vector, other, -dot(other, vector))
        length = norm(vector)
        beside.append(length)
    inner = beside[: len(diagonal) - 1]
    matrix = numpy.diag(diagonal) + numpy.diag(inner, 1) + numpy.diag(inner, -1)
    return numpy.linalg.eigvalsh(matrix) if diagonal else numpy.zeros(1)


def dot(first: Batch, second: Batch) -> float:
    """Inner product, over all tensors."""
    return sum(float((part.double() * second[name].double()).sum()) for name, part in first.items())


# ------------------------------------------------------------------------------------------ the measures


def pieces(at: Solution) -> dict[str, float]:
    """Writes the weights and diagonals: H of Hutchinson with standard errors, G of Gauss-Newton, C of gradients."""
    found = hessian_diagonal(
        at.model,
        cut(by_length(at.data), at.effort.probed),
        config=ScoreConfig(estimator="hutchinson", passes=at.effort.passes, standard_error=True),
        progress=False,
    )
    written = {f"w.{name}": w for name, w in at.weights.items()}
    written |= {f"h.{name}": h.float() for name, h in found.values.items()}
    written |= {f"s.{name}": s.float() for name, s in (found.stderr or {}).items()}
    share = at.probabilities()
    if share.shape[1] == 2:
        # the gradients with one label and with the other point along one line: one pass serves C and G
        labels = at.data["labels"]
        own = share[torch.arange(len(share)), labels]
        slope = (1 - own).clamp(min=1e-9)  # by which the gradient with the example's own label is multiplied
        found_c, found_g = squared(at, labels, torch.stack([torch.ones_like(own), own * (1 - own) / slope.square()]))
        written |= {f"c.{name}": part for name, part in found_c.items()}
        written |= {f"g.{name}": part for name, part in found_g.items()}
    else:
        ones = torch.ones(1, len(share), dtype=torch.float64)
        written |= {f"c.{name}": part for name, part in squared(at, at.data["labels"], ones)[0].items()}
        written |= {f"g.{name}": part for name, part in gauss_newton(at, share).items()}
    save_file({name: part.contiguous() for name, part in written.items()}, at.path / "pieces.tmp")
    (at.path / "pieces.tmp").replace(at.path / "pieces.safetensors")
    return {"trace": found.trace, "error of the trace": found.trace_stderr or math.nan}


def gauss_newton(at: Solution, share: Tensor) -> Batch:
    """The diagonal of E[g gᵀ] over labels of the model's own: drawn as often as they matter, and weighted."""
    matters = share * (share.square().sum(1, keepdim=True) - 2 * share + 1)
    total, rows = matters.sum(1), torch.arange(len(share))
    found = {name: torch.zeros_like(w) for name, w in at.weights.items()}
    for draw in range(at.effort.labels):
        labels = torch.multinomial(matters, 1, generator=at.generator(5, draw)).squeeze(1)
        factors = share[rows, labels] * total / matters[rows, labels]
        found = add(found, squared(at, labels, factors[None])[0], 1 / at.effort.labels)
    return found


def squared(at: Solution, labels: Tensor, factors: Tensor) -> list[Batch]:
    """Weighted means over examples of their squared gradients with some labels, one for each row of factors."""
    order = by_length({**at.data, "row": torch.arange(len(labels))})["row"]
    totals = [{name: torch.zeros_like(w) for name, w in at.weights.items()} for _ in factors]
    start = 0
    for parts in at.example_gradients(labels):
        size = len(next(iter(parts.values())))
        shares = (factors[:, order[start : start + size]] / len(labels)).float()
        for name, part in parts.items():
            for total, row in zip(totals, shares @ part.flatten(1).square(), strict=True):
                total[name] += row.view_as(total[name])
        start += size
    return totals


def smoothness(at: Solution, box: str, seed: int = 0) -> dict[str, list[float]]:
    """‖H(w + u) - H(w)‖/‖u‖ for some displacements u in a box, each on a batch of its own."""
    order = torch.randperm(at.run.examples, generator=at.generator(1, seed))
    found = []
    for number in range(DISPLACEMENTS):
        start = number * at.effort.smooth % at.run.examples
        batch = [trim(take(at.data, order[start : start + at.effort.smooth]))]
        generator = at.generator(2, number, seed)
        shift = {
            name: BOXES[box](w) * (2 * torch.rand(w.shape, generator=generator) - 1) for name, w in at.weights.items()
        }
        found.append(change_of_the_hessian(at, batch, shift, at.effort.steps) / norm(shift))
    return {"ratios": found}


def repeats(at: Solution) -> dict[str, list[list[float]]]:
    """The displacements of ρ with other seeds, in the boxes whose scores are repeated."""
    return {box: [smoothness(at, box, seed)["ratios"] for seed in range(1, 6)] for box in REPEATED}


def change_of_the_hessian(at: Solution, batch: list[Batch], shift: Batch, steps: int) -> float:
    """‖H(w + u) - H(w)‖ from below, by Lanczos from the change of the gradient."""
    there = add(at.weights, shift)

    def difference(vector: Batch) -> Batch:
        return add(at.product(there, batch, vector), at.product(at.weights, batch, vector), -1.0)

    start = add(at.gradient(there, batch), at.gradient(at.weights, batch), -1.0)
    return float(numpy.abs(eigenvalues(difference, start, steps)).max())


def relative_sharpness(at: Solution) -> dict[str, float]:
    """E L(w + u) - L(w), u_i = level · |w_i| · z, z uniform in [-1, 1]: pairs ±z, the same for all levels and runs."""
    batches = cut(by_length(at.data), at.effort.shaken)
    found = {}
    for level in LEVELS:
        rises = []
        for number, batch in enumerate(batches):
            with torch.no_grad():
                here = float(at.loss(at.weights, batch))
                for draw in range(at.effort.draws):
                    generator = at.generator(3, number, draw)
                    noise = {n: w * (2 * torch.rand(w.shape, generator=generator) - 1) for n, w in at.weights.items()}
                    pair = [float(at.loss(add(at.weights, noise, sign * level), batch)) for sign in (1, -1)]
                    rises.append((statistics.mean(pair) - here) * len(batch["labels"]))
        found[f"relative sharpness[{level:g}]"] = math.fsum(rises) / (at.run.examples * at.effort.draws)
    return found


def largest_eigenvalue(at: Solution) -> dict[str, float]:
    """λ_max of the Hessian, by Lanczos."""
    some = cut(take(at.data, torch.arange(min(at.effort.top, at.run.examples))), 250)
    generator = at.generator(4)
    start = {name: torch.randn(w.shape, generator=generator) for name, w in at.weights.items()}
    return {"lambda_max": float(eigenvalues(lambda v: at.product(at.weights, some, v), start, at.effort.lanczos).max())}


def adaptive_sharpness(at: Solution) -> dict[str, float]:
    """Rise of the loss one adaptive step up (Kwon et al. 2021, arXiv 2102.11600): u = r w² g/‖|w| g‖, ‖u/w‖ = r."""
    batches = cut(by_length(at.data), 250)
    slope = at.gradient(at.weights, batches)
    length = norm({name: at.weights[name] * g for name, g in slope.items()})
    step = {name: at.weights[name].square() * g / length for name, g in slope.items()}
    here = mean_loss(at.model, batches)[0]
    found = {}
    for radius in RADII:
        there = add(at.weights, step, radius * math.sqrt(sum(w.numel() for w in step.values())) * 0.1)
        with torch.no_grad():
            rise = sum(float(at.loss(there, b)) * len(b["labels"]) for b in batches) / at.run.examples - here
        found[f"adaptive sharpness[{radius:g}]"] = rise
    return found


def distances(at: Solution) -> dict[str, float]:
    """|w|, and how far it is from the initialization (of an encoder: from the pretrained weights and the new head)."""
    initial = dict(model_of(at.run).named_parameters())
    return {
        "|w|": norm(at.weights),
        "distance from initialization": norm({n: w - initial[n].detach() for n, w in at.weights.items()}),
    }


def tail_exponent(at: Solution) -> dict[str, float]:
    """WeightWatcher's alpha (Martin, Peng, Mahoney 2021): the mean exponent of the tails of the layers' spectra."""
    import weightwatcher  # a peer, needed for this measure only

    details = weightwatcher.WeightWatcher(model=at.model).analyze(min_evals=8)
    return {"alpha": float(details["alpha"].mean())}


MEASURES: dict[str, Callable[[Solution], dict[str, Any]]] = {
    "pieces": pieces,
    "distances": distances,
    "relative sharpness": relative_sharpness,
    "lambda_max": largest_eigenvalue,
    "adaptive sharpness": adaptive_sharpness,
    **{f"rho {box}": (lambda at, box=box: smoothness(at, box)) for box in BOXES},  # type: ignore[misc]
    "alpha": tail_exponent,
    "repeats": repeats,
}


def measured(run: RunSettings, folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Take the measures that are missing; each is written when it is done."""
    path = folder / run.name / "measures.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    missing = [name for name in names if name not in found]
    if not missing:
        return found
    at = Solution(run, folder)
    for name in missing:
        began = time.perf_counter()
        found[name] = MEASURES[name](at) | {"seconds": time.perf_counter() - began}
        write(path, found)
    return found
