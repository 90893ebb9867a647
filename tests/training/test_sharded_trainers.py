"""Trainers with noise on a model that transformers shards while it loads it: what they do on replicas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from launch import on_two_processes
from sharded import check, same, whole
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from hf_pacgen.distributed.shards import is_sharded
from hf_pacgen.training.callback.callback import PACGenCallback
from hf_pacgen.training.trainer import PACGenTrainer


class Examples(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        self.batch = tiny.examples("llama", 64)

    def __len__(self) -> int:
        return len(self.batch["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: values[index] for key, values in self.batch.items()}


def _with_a_trainer(folder: str, method: str, noise: dict[str, Any]) -> None:
    from transformers.distributed import DistributedConfig

    found: list[dict[str, Tensor]] = []
    metrics: list[dict[str, float]] = []
    kinds: tuple[dict[str, Any], ...] = ({}, {"distributed_config": DistributedConfig(fsdp_size=2)})
    for settings in kinds:
        made: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64, **settings)
        check(is_sharded(next(made.parameters())) == bool(settings), "this model is not sharded as it should be")
        args = TrainingArguments(
            output_dir=folder,
            max_steps=10,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_grad_norm=0.1,
            learning_rate=1e-2,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            ddp_backend="gloo",
        )
        data: dict[str, Any] = {"train_dataset": Examples(), "eval_dataset": Examples()}
        if method == "trainer":
            score = {"max_examples": 8, "lipschitz_directions": 0, "hvp": "finite_difference"}
            trainer: Trainer = PACGenTrainer(made, args, noise=noise, score=score, **data)
        else:
            trainer = Trainer(made, args, callbacks=[PACGenCallback(noise=noise)], **data)
        trainer.train()
        found.append(whole(made.named_parameters()))
        metrics.append(trainer.evaluate())
    # a sharded model's estimates are finite differences, here of a model that computes norms and loss in float32
    tolerance = 1e-2 if "rho" in noise else 1e-5
    same(found[1], found[0], "weights", tolerance)
    for key, value in metrics[0].items():
        if "pacgen" in key or key == "eval_loss":
            check(
                metrics[1][key] == pytest.approx(value, rel=10 * tolerance), f"{key} is {metrics[1][key]}, not {value}"
            )


@pytest.mark.parametrize(
    ("method", "noise"),
    [
        ("trainer", {}),
        ("trainer", {"antithetic": True}),
        ("trainer", {"curvature": "adam"}),
        ("trainer", {"curvature": "hutchinson", "rho": "estimate", "rho_every": 4}),
        ("callback", {}),
        ("trainer", {"recipe": "rows", "scale": 0.6}),
        ("trainer", {"recipe": "sam"}),
        ("trainer", {"recipe": "mixed"}),
        ("trainer", {"recipe": "consistency"}),
        ("callback", {"recipe": "ascent", "shape": "box", "scale": 2.0}),
    ],
    ids=["trainer", "antithetic", "adam", "estimates", "callback", "rows", "sam", "mixed", "consistency", "ascent"],
)
def test_trainers_on_shards_do_what_they_do_on_replicas(method: str, noise: dict[str, Any], tmp_path: Path) -> None:
    config = getattr(pytest.importorskip("transformers.distributed"), "DistributedConfig", None)
    if not hasattr(config, "fsdp_size"):
        pytest.skip("this transformers does not shard while loading")
    torch.manual_seed(0)
    tiny.llama().save_pretrained(tmp_path)  # type: ignore[operator]
    on_two_processes(_with_a_trainer, str(tmp_path), method, {"eta": 1000, "curvature_every": 1, **noise})
