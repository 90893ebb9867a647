"""The runs of ``generalization_sweep.py``: which settings, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

TASKS = ("lenet", "vit", "encoder", "wrong")
"""LeNets on MNIST, vision transformers on digits, encoders on tweets, and with a fifth of the labels wrong."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """One run of a grid."""

    task: str
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    width: int = 0
    dropout: float = 0.0
    seed: int
    examples: int
    target_loss: float
    max_steps: int
    data_dir: str

    @property
    def name(self) -> str:
        """A name for its folder."""
        return (
            f"{self.task}-b{self.batch_size}-lr{self.learning_rate:g}-wd{self.weight_decay:g}-x{self.width}"
            f"-d{self.dropout:g}-s{self.seed}-n{self.examples}"
        )


def grid(task: str, data_dir: str, seeds: int) -> list[RunSettings]:
    """All runs of a task, all settings of one seed before those of the next."""
    if task == "lenet":
        return _lenets(data_dir, seeds)
    if task == "vit":
        return [
            RunSettings(
                task=task,
                batch_size=batch_size,
                learning_rate=rate,
                weight_decay=decay,
                width=32,
                seed=seed,
                examples=600,
                target_loss=0.02,
                max_steps=6000,
                data_dir=data_dir,
            )
            for seed in range(seeds)
            for batch_size, rate, decay in product((32, 128), (1e-3, 4e-3), (0.0, 0.1))
        ]
    if task in ("encoder", "wrong"):
        return [
            RunSettings(
                task=task,
                batch_size=batch_size,
                learning_rate=rate,
                dropout=dropout,
                seed=seed,
                examples=300,
                target_loss=0.1,
                max_steps=3000,
                data_dir=data_dir,
            )
            for seed in range(seeds)
            for batch_size, rate, dropout in product((8, 32), (2e-4, 1e-3), (0.0, 0.2))
        ]
    if task == "smoke":
        return [
            RunSettings(
                task=task,
                batch_size=batch_size,
                learning_rate=rate,
                width=4,
                seed=seed,
                examples=256,
                target_loss=0.3,
                max_steps=2000,
                data_dir=data_dir,
            )
            for batch_size, rate, seed in ((8, 0.2, 0), (64, 0.2, 0), (64, 0.05, 0), (8, 0.05, 0), (64, 0.2, 1))
        ]
    raise ValueError(f"The tasks are {', '.join(TASKS)} and smoke; got {task!r}.")


def _lenets(data_dir: str, seeds: int) -> list[RunSettings]:
    """A full grid of four axes, and the article's two axes: batch size at rate 0.05, rate at batch size 128."""
    runs: dict[RunSettings, None] = {}
    for seed in range(seeds):
        settings = list(product((16, 128), (0.05, 0.1), (0.0, 2e-3), (4, 8)))
        settings += [(batch_size, 0.05, 0.0, 4) for batch_size in (8, 16, 32, 128)]
        settings += [(128, rate, 0.0, 4) for rate in (0.1, 0.05, 0.025, 0.0125)]
        for batch_size, rate, decay, width in settings:
            run = RunSettings(
                task="lenet",
                batch_size=batch_size,
                learning_rate=rate,
                weight_decay=decay,
                width=width,
                seed=seed,
                examples=2000,
                target_loss=0.01,
                max_steps=40_000,
                data_dir=data_dir,
            )
            runs[run] = None
    return list(runs)
