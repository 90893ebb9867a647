"""Noisy predictions of a Trainer's model, with the data and the processes of its run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.utils.data import Subset

from hf_pacgen.config import NoiseConfig

if TYPE_CHECKING:
    from hf_pacgen.results.noisy_predictions import NoisyPredictions
    from hf_pacgen.training.trainer import PACGenTrainer


def predict_noisy(
    trainer: PACGenTrainer,
    test_dataset: Any = None,
    noise_scale: float | str | NoiseConfig = "auto",
    draws: int = 8,
    **options: Any,
) -> NoisyPredictions:
    """See :meth:`hf_pacgen.PACGenTrainer.predict_noisy`."""
    # it reads outputs as promises do, of which training knows nothing else
    from hf_pacgen.predictions.noisy import noisy_predictions

    data: Any = trainer.eval_dataset if test_dataset is None else test_dataset
    if data is None or (test_dataset is None and isinstance(data, dict)):
        came = "several eval_datasets" if isinstance(data, dict) else "none, and the Trainer has no eval_dataset"
        raise ValueError(f"predict_noisy() needs a dataset to predict on: expected one, got {came}. Pass test_dataset.")
    with torch.random.fork_rng(devices=[]):  # a new loader draws the seed of its sampler
        loader = trainer.get_test_dataloader(data)
    if "training_data" not in options and noise_scale == "auto":
        if trainer.train_dataset is None:
            raise ValueError(
                "noise_scale='auto' finds the size of the noise on what the model was trained on: expected a "
                "train_dataset in the Trainer, got none. Pass training_data, or noise_scale as a number."
            )
        options["training_data"] = _of_examples(trainer._train_loader().dataset)
    own = {
        "collate_fn": loader.collate_fn,
        "batch_size": trainer.args.per_device_eval_batch_size,
        "accelerator": trainer.accelerator,
        "progress": not trainer.args.disable_tqdm,
    }
    model = cast(nn.Module, trainer.model)
    return noisy_predictions(model, _of_examples(loader.dataset), noise_scale, draws, **(own | options))


def _of_examples(dataset: Any) -> Any:
    # a Trainer takes a list for a dataset of examples; elsewhere a list is one of batches
    return Subset(dataset, range(len(dataset))) if isinstance(dataset, (list, tuple)) else dataset  # type: ignore[arg-type]
