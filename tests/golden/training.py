"""Twenty steps of noisy training by either way into the Trainer."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from golden.subjects import Examples, trainable_bert, trainable_llama
from hf_pacgen import NoiseConfig, PACGenCallback, PACGenTrainer

logging.set_verbosity_error()
logging.disable_progress_bar()

# With an η this large the noise follows the curvature in most weights, and is not just cut off at its box N_i.
NOISE: dict[str, Any] = {"eta": 1e5, "curvature_every": 2}

SETTINGS: dict[str, dict[str, Any]] = {
    "price": {},
    "adam": {"curvature": "adam"},
    "hutchinson": {"curvature": "hutchinson", "curvature_every": 3},
    "accumulated": {"gradient_accumulation_steps": 2},
    "estimated_rho": {"rho": "estimate", "rho_every": 8},
}
"""Settings of the noise, and of the Trainer, of the runs that both ways make with both models."""

OF_BERT: dict[str, dict[str, Any]] = {
    "article": {"shape": "article", "scale": 0.02},
    "magnitude": {"shape": "magnitude"},
    "isotropic": {"shape": "isotropic", "scale": 0.05},
    "truncated_normal": {"distribution": "truncated_normal"},
    "schedule": {"warmup_ratio": 0.3, "decay_ratio": 0.3, "seed": 7},
    "draw-step": {"draw": "step", "gradient_accumulation_steps": 2},
    "clipped": {"max_grad_norm": 0.05},
    "silent": {"scale": 0.0},
    "scored": {"score": {"max_examples": 8}},
}
"""Those that one model is enough for."""

OF_THE_TRAINER = ("gradient_accumulation_steps", "max_grad_norm", "learning_rate", "max_steps")


class Path(TrainerCallback):
    """The weights after every optimizer step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})


def model(name: str, dtype: torch.dtype) -> nn.Module:
    makers = {
        "bert": trainable_bert,
        "llama": trainable_llama,
        # an embedding of 2^20 weights has its noise in the rows that are read
        "large-embedding": lambda dtype: trainable_bert(dtype, vocabulary=1 << 18),
    }
    return makers[name](dtype)


def train(
    way: str,
    name: str,
    dtype: torch.dtype,
    *,
    made: nn.Module | None = None,
    score: dict[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """What a run gives: the losses that it logs, its weights after every step, and its metrics at the end."""
    data = "bert" if name == "large-embedding" else name
    noise = {**NOISE, **{key: value for key, value in settings.items() if key not in OF_THE_TRAINER}}
    changes = {key: value for key, value in settings.items() if key in OF_THE_TRAINER}
    path = Path()
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "model": model(name, dtype) if made is None else made,
            "args": _arguments(folder, **changes),
            "train_dataset": Examples(data, dtype),
            "eval_dataset": Examples(data, dtype, count=8),
        }
        trainer = _trainer(way, NoiseConfig(**noise), score, path, common)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        metrics = trainer.evaluate()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not path.weights:
        raise RuntimeError("no step was taken")
    timeless = {key: value for key, value in metrics.items() if key == "eval_loss" or "pacgen" in key or "hess" in key}
    return {"losses": losses, "path": path.weights, "weights": path.weights[-1], **timeless}


def _arguments(folder: str, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "max_steps": 20,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    if torch.distributed.is_initialized():
        settings["ddp_backend"] = "gloo"
    return TrainingArguments(output_dir=folder, **{**settings, **changes})


def _trainer(
    way: str, noise: NoiseConfig, score: dict[str, Any] | None, path: TrainerCallback, common: dict[str, Any]
) -> Trainer:
    if way == "trainer":
        return PACGenTrainer(noise=noise, score=score, callbacks=[path], **common)
    if way == "callback":
        return Trainer(callbacks=[PACGenCallback(noise=noise, score=score), path], **common)
    raise ValueError(f"way must be 'trainer' or 'callback'; got {way!r}.")
