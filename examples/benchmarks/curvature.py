"""Curvature against other libraries, in one run: error of the diagonal, and cost of products and of the score.

    python examples/benchmarks/curvature.py --output curvature.json
    python examples/benchmarks/curvature.py --parts products cost --threads 2

Peers (curvlinops, hessian-eigenthings) are installed by ``make benchmarks`` and are left out where absent.
Tweets are read from ``../shared/data/sentiment``; without them only the digits remain.  Times are medians of
interleaved repetitions and are given as ratios: to a gradient of the same model on the same batch.
"""

from __future__ import annotations

import copy
import gc
import importlib.util
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import (
    TWEETS,
    Batch,
    Logits,
    absent,
    gradients,
    interleaved,
    minilm,
    pass_over,
    record,
    renumbered,
    show,
    tweets,
)
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, HfArgumentParser

from hf_pacgen import ScoreConfig, hessian_diagonal, hessian_vector_product, pacgen


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    output: str = field(default="", metadata={"help": "Write all figures to this JSON file."})
    parts: list[str] = field(
        default_factory=lambda: ["diagonal", "products", "cost"], metadata={"help": "Which of the three to run."}
    )
    seeds: int = field(default=5, metadata={"help": "Seeds of each estimate; medians are reported."})
    threads: int = field(default=0, metadata={"help": "Threads of torch; 0 leaves its choice."})
    repeats: int = field(default=3, metadata={"help": "Timed repetitions of every task, after one that is not."})
    tweets: int = field(default=512, metadata={"help": "Tweets that the whole score is timed on."})
    memory_of: str = field(default="", metadata={"help": "Only print the extra memory of this one product."})


# ------------------------------------------------------------------------------------------ models and data


class DigitsMLP(nn.Module):
    """64-32-10 with tanh: 2,410 parameters, small enough for the exact diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(pixel_values)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return loss | {"logits": logits}


def train(model: nn.Module, batches: list[Batch], goal: float, rate: float) -> float:
    """Train to a loss, and return the one reached."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for _ in range(200):
        losses = []
        for batch in batches:
            loss = model(**batch)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        if statistics.mean(losses) <= goal:
            break
    return statistics.mean(losses)


def digits() -> list[Batch]:
    images, labels = load_digits(return_X_y=True)
    pixels, targets = torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)
    return [{"pixel_values": pixels[i : i + 32], "labels": targets[i : i + 32]} for i in range(0, len(pixels) - 5, 32)]


def problems() -> Iterator[tuple[str, nn.Module, list[Batch]]]:
    """The models of the table: a digits MLP, and small BERT and GPT-2 trained shorter and longer."""
    torch.manual_seed(0)
    mlp, batches = DigitsMLP(), digits()
    yield f"digits MLP (loss {train(mlp, batches, 0.02, 3e-3):.2f})", mlp.eval(), batches
    if not TWEETS.is_file():
        return
    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=128, max_position_embeddings=64, num_labels=2)
    bert, batches = BertForSequenceClassification(config).eval(), tweets(512, 32)
    for goal in (0.47, 0.19):
        yield f"BERT 2x64, tweets (loss {train(bert, batches, goal, 5e-4):.2f})", bert, batches
    batches, size = renumbered(tweets(512, 32, causal=True))  # with all 30,522 tokens, exact entries take hours
    causal = GPT2Config(vocab_size=size, n_embd=64, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    gpt2 = GPT2LMHeadModel(causal).eval()
    for goal in (5.1, 4.2):
        yield f"GPT-2 2x64, tweets (loss {train(gpt2, batches, goal, 2e-3):.2f})", gpt2, batches


# ------------------------------------------------------------------------------------------ error of the diagonal


def exact_entries(model: nn.Module, batches: list[Batch], count: int) -> tuple[Tensor, Tensor]:
    """Random positions in the flat parameter vector where the loss depends on it, and the exact float64 diagonal."""
    gradients(model, batches[:1])
    reached = torch.cat([(p.grad if p.grad is not None else p * 0).reshape(-1) != 0 for p in model.parameters()])
    candidates = reached.nonzero().squeeze(1)
    model.zero_grad(set_to_none=True)
    model = copy.deepcopy(model).double()
    parameters = list(model.parameters())
    sizes = torch.tensor([p.numel() for p in parameters])
    offsets = sizes.cumsum(0) - sizes
    shuffled = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(0))
    where = candidates[shuffled[:count]].sort().values
    owner = torch.searchsorted(offsets, where, right=True) - 1
    total, units = torch.zeros(len(where), dtype=torch.float64), 0
    for batch in batches:
        batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        labels = batch["labels"][:, 1:] if batch["labels"].ndim > 1 else batch["labels"]
        counted = int((labels != -100).sum())
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            slopes = torch.autograd.grad(model(**batch)["loss"], parameters, create_graph=True, allow_unused=True)
        for i, (position, tensor) in enumerate(zip(where.tolist(), owner.tolist(), strict=True)):
            gradient, inside = slopes[tensor], position - int(offsets[tensor])
            if gradient is None or not (entry := gradient.reshape(-1)[inside]).requires_grad or entry == 0:
                continue
            (row,) = torch.autograd.grad(entry, parameters[tensor], retain_graph=True, allow_unused=True)
            total[i] += 0 if row is None else row.reshape(-1)[inside] * counted
        units += counted
    return where, total / units


def peer_diagonal(model: nn.Module, batches: list[Batch], matvecs: int, where: Tensor) -> Tensor:
    """curvlinops' Hutchinson diagonal of the same pooled loss."""
    from curvlinops import HessianLinearOperator, hutchinson_diag

    if "pixel_values" in batches[0]:
        data: Any = [(b["pixel_values"], b["labels"]) for b in batches]
        operator = HessianLinearOperator(
            Logits(model), nn.CrossEntropyLoss(), list(model.parameters()), data, check_deterministic=False
        )
    else:
        data = [({k: v for k, v in b.items() if k != "labels"}, b["labels"]) for b in batches]
        operator = HessianLinearOperator(
            Logits(model),
            nn.CrossEntropyLoss(),
            list(model.parameters()),
            data,
            check_deterministic=False,
            batch_size_fn=lambda x: x["input_ids"].shape[0],
        )
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return hutchinson_diag(operator, matvecs)[where]


def diagonal_errors(arguments: Arguments) -> list[dict[str, Any]]:
    rows = []
    for name, model, batches in problems():
        whole = "digits" in name
        where, exact = exact_entries(model, batches, 2410 if whole else 250)

        def error(values: Tensor, exact: Tensor = exact) -> float:
            return ((values.double() - exact).norm() / exact.norm()).item()

        row: dict[str, Any] = {"model": name, "batches": len(batches), "entries": len(where)}
        # gradients of a batch per batch of data: a product by finite differences is 2, Gauss-Newton is 1
        plans = {
            "hutchinson, 2": ("hutchinson", 1),
            "hutchinson, 16": ("hutchinson", 8),
            "gauss_newton, 1": ("gauss_newton", 1),
            "blend, 3": ("blend", 1),
            "blend, 17": ("blend", 8),
        }
        for label, (estimator, passes) in plans.items():
            errors = []
            for seed in range(arguments.seeds):
                config = ScoreConfig(estimator=estimator, passes=passes, seed=seed)  # type: ignore[arg-type]
                values = hessian_diagonal(model, batches, config=config, progress=False).values
                errors.append(error(torch.cat([v.reshape(-1) for v in values.values()])[where]))
            row[label] = statistics.median(errors)
        for budget, passes in (("3", "2"), ("17", "16")):
            parts = min(row["gauss_newton, 1"], row[f"hutchinson, {passes}"])
            row[f"blend / better part, {budget}"] = row[f"blend, {budget}"] / parts
        rows.append(row)
        if whole and peer_is_here():
            cost = peer_cost(model, batches)
            # its overhead weighs on so small a model, so it is also given as many products as ours had
            for label, matvecs in (
                (f"{max(1, round(16 / cost))} products", max(1, round(16 / cost))),
                ("8 products", 8),
            ):
                errors = []
                for seed in range(arguments.seeds):
                    torch.manual_seed(seed)
                    errors.append(error(peer_diagonal(model, batches, matvecs, where)))
                row["curvlinops product / gradient"] = cost
                row[f"curvlinops, {label}"] = statistics.median(errors)
                row["hutchinson, 16 / curvlinops, 8 products"] = row["hutchinson, 16"] / statistics.median(errors)
                row["blend, 17 / curvlinops, 8 products"] = row["blend, 17"] / statistics.median(errors)
        show("Relative error of the Hessian diagonal (label: method, gradients spent)", [row])
    return rows


def peer_is_here() -> bool:
    here = importlib.util.find_spec("curvlinops") is not None
    if not here:
        pass_over("curvlinops")
    return here


def peer_cost(model: nn.Module, batches: list[Batch]) -> float:
    """Time of curvlinops' product over one gradient, on the same data."""
    from curvlinops import HessianLinearOperator

    data = [(b["pixel_values"], b["labels"]) for b in batches]
    operator = HessianLinearOperator(
        Logits(model), nn.CrossEntropyLoss(), list(model.parameters()), data, check_deterministic=False
    )
    vector = torch.randn(operator.shape[1])
    times = interleaved({"gradient": lambda: gradients(model, batches), "product": lambda: operator @ vector}, 9)
    return times["product"] / times["gradient"]


# ------------------------------------------------------------------------------------------ products and cost


def extra_memory(task: str) -> float | None:
    """Peak resident memory of one task over that at its start, in bytes; None where the system does not tell.

    In a process of its own that gives freed memory back at once: otherwise what one task leaves behind in the
    allocator hides what the next one takes.
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, __file__, "--memory_of", task]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    figure = done.stdout.split()[-1]
    return None if figure == "unknown" else float(figure)


def measure_memory(task: str) -> None:
    """Print the extra memory of a task of :func:`product_tasks`, after a small warm-up."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        print("unknown")
        return

    def resident(key: str) -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(key)).split()[1]) * 1024

    model, (batch,) = minilm(), tweets(16, 16, length=64)
    tasks = product_tasks(model, batch, random_vector(model))
    product_tasks(model, tweets(2, 2, length=8)[0], random_vector(model))[task]()  # loads the code
    _ = sum(p.detach().sum().item() for p in model.parameters())  # a mapped file is in memory once it was read
    model.zero_grad(set_to_none=True)
    gc.collect()
    clear.write_text("5")  # the peak starts anew
    base = resident("VmRSS")
    tasks[task]()
    print(resident("VmHWM") - base)


def random_vector(model: nn.Module) -> dict[str, Tensor]:
    return {n: torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) for n, p in model.named_parameters()}


def product_tasks(model: nn.Module, batch: Batch, vector: dict[str, Tensor]) -> dict[str, Callable[[], Any]]:
    """A gradient, products by every method and peer, and diagonals with few and many probes."""
    tasks: dict[str, Callable[[], Any]] = {"gradient": lambda: gradients(model, [batch])}
    for method in ("auto", "reverse_over_reverse", "forward_over_reverse"):
        tasks[method] = lambda method=method: hessian_vector_product(model, [batch], vector, method=method)
    tasks |= peer_products(model, batch, vector)
    for passes in (1, 16):
        config = ScoreConfig(estimator="hutchinson", passes=passes)  # type: ignore[arg-type]
        tasks[f"hutchinson, probes: {passes}"] = lambda config=config: hessian_diagonal(
            model, [batch], config=config, progress=False
        )
    whole = ScoreConfig()
    tasks["pacgen(), the whole score"] = lambda: pacgen(model, [batch], config=whole, progress=False)
    return tasks


def product_rows(arguments: Arguments) -> list[dict[str, Any]]:
    model, (batch,) = minilm(), tweets(16, 16, length=64)
    vector = random_vector(model)
    buffer = sum(p.numel() * p.element_size() for p in model.parameters())
    double = copy.deepcopy(model).double()
    reference = hessian_vector_product(double, [batch], {n: v.double() for n, v in vector.items()})
    exact = torch.cat([v.reshape(-1) for v in reference.values()])
    del double, reference
    tasks = product_tasks(model, batch, vector)
    memory = {name: extra_memory(name) for name in tasks}
    products = {name: task for name, task in tasks.items() if "probes" not in name and "score" not in name}
    times = interleaved(products, 2 * arguments.repeats + 1)
    rows = []
    for name in tasks:
        row: dict[str, Any] = {"method": name}
        if name in times:
            row["time / gradient"] = times[name] / times["gradient"]
        if (used := memory[name]) is not None and (gradient := memory["gradient"]) is not None:
            row["extra memory / gradient's"] = used / gradient
            row["over a gradient, in parameter-sized buffers"] = (used - gradient) / buffer
        if name in products and name != "gradient":
            product = products[name]()
            flat = torch.cat([v.reshape(-1) for v in product.values()]) if isinstance(product, dict) else product
            row["relative error"] = ((flat.double() - exact).norm() / exact.norm()).item()
        rows.append(row)
    show("One Hessian-vector product of MiniLM, batch 16 x 64, float32", rows)
    return rows


def peer_products(model: nn.Module, batch: Batch, vector: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    tasks: dict[str, Callable[[], Tensor]] = {}
    flat = torch.cat([v.reshape(-1) for v in vector.values()])
    math = torch.nn.attention.SDPBackend.MATH
    inputs, labels = {k: v for k, v in batch.items() if k != "labels"}, batch["labels"]
    try:
        from curvlinops import HessianLinearOperator
    except ImportError:
        pass_over("curvlinops")
    else:
        operator = HessianLinearOperator(
            Logits(model),
            nn.CrossEntropyLoss(),
            list(model.parameters()),
            [(inputs, labels)],
            check_deterministic=False,
            batch_size_fn=lambda x: x["input_ids"].shape[0],
        )

        def curvlinops() -> Tensor:
            with torch.nn.attention.sdpa_kernel(math):
                return operator @ flat

        tasks["curvlinops"] = curvlinops
    try:
        from hessian_eigenthings import HessianOperator
    except ImportError:
        pass_over("hessian-eigenthings")
    else:
        peer = HessianOperator(model, [batch], lambda m, b: m(**b)["loss"])

        def eigenthings() -> Tensor:
            with torch.nn.attention.sdpa_kernel(math):
                return peer.matvec(flat)

        tasks["hessian-eigenthings"] = eigenthings
    return tasks


def score_times(count: int, repeats: int, estimators: Iterable[str]) -> dict[str, float]:
    """Seconds of a gradient of MiniLM on so many tweets, and of the whole score by each estimator."""
    model, batches = minilm(), tweets(count, 8)
    tasks: dict[str, Callable[[], Any]] = {"gradient": lambda: gradients(model, batches)}
    for estimator in estimators:
        config = ScoreConfig(estimator=estimator)  # type: ignore[arg-type]
        tasks[estimator] = lambda config=config: pacgen(model, batches, config=config, progress=False)
    return interleaved(tasks, repeats)


def cost_rows(arguments: Arguments) -> list[dict[str, Any]]:
    limits = {"blend": 4.7, "hutchinson": 3.7, "gauss_newton": 2.7}
    times = score_times(arguments.tweets, arguments.repeats, limits)
    rows = [
        {"estimator": name, "gradient passes": times[name] / times["gradient"], "wanted at most": limit}
        for name, limit in limits.items()
    ]
    show(f"pacgen() of MiniLM with a 2-class head on {arguments.tweets} tweets, passes=1, with rho", rows)
    return rows


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        measure_memory(arguments.memory_of)
        return
    tasks: dict[str, Callable[[], Any]] = {"diagonal": lambda: diagonal_errors(arguments)}
    for part, rows in (("products", product_rows), ("cost", cost_rows)):
        tasks[part] = lambda part=part, rows=rows: None if absent(part, TWEETS) else rows(arguments)
    record(arguments.parts, tasks, arguments.output, torch=torch.__version__, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
