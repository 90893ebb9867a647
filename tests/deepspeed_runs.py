"""Trainings with noise under DeepSpeed beside the same under DistributedDataParallel; for two processes.

    python -m torch.distributed.run --nproc_per_node 2 tests/deepspeed_runs.py FOLDER

Writes what it found into FOLDER/found.pt, for test_deepspeed.py.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Any

import deepspeed
import tiny
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, set_seed

from hf_pacgen import PACGenCallback, PACGenTrainer, ScoreConfig, pacgen

# DeepSpeed would compile its collectives of one machine, which takes minutes; torch has them too
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.utils.logger.setLevel(logging.ERROR)

# a large eta, so that the curvature has a part in the size of the noise
PRICE = {"epsilon": 0.05, "eta": 1e5, "curvature_every": 2}
ISOTROPIC = {"shape": "isotropic", "scale": 0.05}
CASES: dict[str, dict[str, Any]] = {
    "isotropic": {"noise": ISOTROPIC},
    "price": {"noise": PRICE},
    "clipped": {"noise": PRICE | {"draw": "step"}, "max_grad_norm": 0.1},
    "hutchinson": {"noise": PRICE | {"curvature": "hutchinson", "rho": "estimate", "rho_every": 3}},
    "callback": {"noise": PRICE, "callback": True},
    "rows": {"noise": {"recipe": "rows", "scale": 0.6}},
    "ascent": {"noise": {"recipe": "ascent", "scale": 0.15}},
    "average": {"noise": ISOTROPIC, "ema": 0.7},
    "silent": {"noise": {"scale": 0}},
    "plain": {},
}
SCORE = ScoreConfig(lipschitz_directions=1, max_examples=8)


class Examples(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        self.batch = tiny.examples("bert", 32)

    def __len__(self) -> int:
        return len(self.batch["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: values[index] for key, values in self.batch.items()}


def trainer_of(
    folder: Path,
    stage: int | None,
    *,
    noise: Any = None,
    callback: bool = False,
    kind: Any = None,
    ema: float | None = None,
    **changes: Any,
) -> Trainer:
    """A Trainer of a tiny model; its stage of ZeRO, or None for DistributedDataParallel."""
    AcceleratorState._reset_state()
    set_seed(0)
    settings: dict[str, Any] = {"zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True}
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    settings |= dict.fromkeys(auto, "auto") | changes.pop("deepspeed", {})
    options = {"max_steps": 6, "max_grad_norm": 1.0, "gradient_accumulation_steps": 2, "learning_rate": 1e-2} | changes
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        save_strategy=options.pop("save_strategy", "no"),
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        deepspeed=None if stage is None else settings,
        **options,
    )
    data: dict[str, Any] = {"train_dataset": Examples()}
    model = tiny.make("bert")
    if callback:
        return Trainer(model, args, callbacks=[PACGenCallback(noise=noise)], **data)
    if noise is None and kind is None:
        return Trainer(model, args, **data)
    return (kind or PACGenTrainer)(model, args, noise=noise, ema=ema, **data)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    model: Any = trainer.model
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def scores(trainer: Any) -> dict[str, Any]:
    """The score by the engine's model, by the engine itself, and by a copy in one process."""
    copy = tiny.make("bert")
    copy.load_state_dict(trainer.model.state_dict())
    data = trainer.train_dataset
    own = pacgen(trainer.model_wrapped, data, config=SCORE, accelerator=trainer.accelerator, progress=False)
    alone = pacgen(copy, data, config=SCORE, progress=False)
    return {"trainer": trainer.pacgen(SCORE).metrics(), "engine": own.metrics(), "alone": alone.metrics()}


def resumed(folder: Path) -> dict[str, Tensor]:
    """Saved at step 3, and gone on with by another Trainer."""
    trainer_of(folder, 2, noise=PRICE, max_steps=6, save_strategy="steps", save_steps=3).train()
    again = trainer_of(folder, 2, noise=PRICE, max_steps=6)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    return weights(again)


class Fails(PACGenTrainer):
    """Raises in the third step, when noise is on the weights, and keeps what they were."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            assert self._noisy_step is not None
            self.kept = {name: value.clone() for name, value in self._noisy_step.noise.weights.items()}
            raise RuntimeError("as asked")
        return super().compute_loss(*args, **kwargs)


def after_an_exception(folder: Path) -> list[bool]:
    trainer: Any = trainer_of(folder, 2, noise=ISOTROPIC, kind=Fails)
    with contextlib.suppress(RuntimeError):
        trainer.train()
    return [torch.equal(trainer.kept[name], value) for name, value in weights(trainer).items()]


def in_bfloat16(folder: Path) -> list[bool]:
    """Whether the weights are DeepSpeed's own float32 weights, rounded: nothing of the noise is in them."""
    trainer: Any = trainer_of(folder, 2, noise=PRICE, bf16=True, deepspeed={"bf16": {"enabled": True}})
    trainer.train()
    return [torch.equal(p.float(), p.get_full_hp_param().bfloat16().float()) for p in trainer.model.parameters()]


def refusals(folder: Path) -> dict[str, str]:
    found = {}
    for name, stage, noise in (
        ("antithetic", 2, ISOTROPIC | {"antithetic": True}),
        ("adam", 2, {"curvature": "adam"}),
        ("no ZeRO", 0, ISOTROPIC),
        ("ZeRO-3", 3, ISOTROPIC),
    ):
        try:
            trainer_of(folder, stage, noise=noise).train()
        except ValueError as error:
            found[name] = str(error)
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        for stage in (None, 1, 2):
            trainer = trainer_of(folder, stage, **case)
            trainer.train()
            found[f"{name} {stage}"] = weights(trainer)
            if name == "price":
                found[f"score {stage}"] = scores(trainer)
    found["offloaded"] = weights(offloaded(folder))
    found["resumed"] = resumed(folder)
    found["after an exception"] = after_an_exception(folder)
    found["bfloat16"] = in_bfloat16(folder)
    found["refusals"] = refusals(folder)
    if torch.distributed.get_rank() == 0:
        torch.save(found, folder / "found.pt")


def offloaded(folder: Path) -> Trainer:
    cpu = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    trainer = trainer_of(folder, 2, noise=PRICE, deepspeed=cpu | {"zero_force_ds_cpu_optimizer": False})
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
