"""Short training runs of tiny models, with every weight and loss at hand."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    logging,
)

from hf_pacgen.config import NoiseConfig
from hf_pacgen.training.callback.callback import PACGenCallback
from hf_pacgen.training.trainer import PACGenTrainer

logging.set_verbosity_error()

VOCABULARY = 50
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}


def bert(dropout: float = 0.1, seed: int = 0) -> nn.Module:
    """An encoder with dropout, three classes and a padding token."""
    torch.manual_seed(seed)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForSequenceClassification(BertConfig(**SIZES, **rates, num_labels=3))


def llama(tied: bool = True, seed: int = 0, **changes: Any) -> nn.Module:
    """A decoder without dropout, whose loss is right under gradient accumulation."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = SIZES | changes
    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2))


class Sentences(Dataset[dict[str, Tensor]]):
    """Random tokens with random classes, or (``causal``) with themselves as labels."""

    def __init__(self, count: int = 64, *, causal: bool = False, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(1, VOCABULARY, (count, 10), generator=generator)
        self.labels = self.tokens if causal else torch.randint(0, 3, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


def arguments(kind: Callable[..., TrainingArguments] = TrainingArguments, **changes: Any) -> TrainingArguments:
    """Quiet arguments for a few steps on the CPU."""
    settings: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    if "output_dir" not in changes:
        settings["output_dir"] = tempfile.mkdtemp()
    return kind(**{**settings, **changes})


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters, read directly."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether all tensors are equal to the last bit."""
    return first.keys() == second.keys() and all(tensor.equal(second[name]) for name, tensor in first.items())


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference between two models."""
    return max((tensor.double() - second[name].double()).abs().max().item() for name, tensor in first.items())


SHELLS = ("trainer", "callback")


def make(
    shell: str,
    noise: NoiseConfig | None,
    *,
    model: nn.Module | None = None,
    callbacks: list[TrainerCallback] | None = None,
    before: list[TrainerCallback] | None = None,
    trainer: type[Trainer] = Trainer,
    args: TrainingArguments | None = None,
    data: Any = None,
    **settings: Any,
) -> Trainer:
    """A Trainer with noise through the PACGenTrainer, through the PACGenCallback, or ("plain") through neither.

    ``before`` and ``callbacks`` are called before and after the PACGenCallback; ``trainer`` may be a subclass, whose
    methods the PACGenTrainer gets too.
    """
    model = bert() if model is None else model
    causal = "llama" in type(getattr(model, "get_base_model", lambda: model)()).__name__.lower()
    common: dict[str, Any] = {
        "model": model,
        "args": args or arguments(**settings),
        "train_dataset": data or Sentences(causal=causal),
        "eval_dataset": Sentences(8, causal=causal, seed=1),
    }
    extra = [*(before or []), *(callbacks or [])]
    if shell == "plain":
        return trainer(callbacks=extra, **common)
    if shell == "callback":
        extra = [*(before or []), PACGenCallback(noise=noise), *(callbacks or [])]
        return trainer(callbacks=extra, **common)
    kind = PACGenTrainer if trainer is Trainer else type("Both", (trainer, PACGenTrainer), {})
    return kind(callbacks=extra, noise=noise, **common)


def trained(shell: str, noise: NoiseConfig | None, **settings: Any) -> Trainer:
    """The Trainer of :func:`make` after its training; its constructor has seeded all random numbers just before."""
    trainer = make(shell, noise, **settings)
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> list[float]:
    """The logged training losses."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class Recorder(TrainerCallback):
    """Copies of the weights at the start and at the end of every optimizer step."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Tensor]] = []
        self.ended: list[dict[str, Tensor]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.begun.append(weights(model))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.ended.append(weights(model))
