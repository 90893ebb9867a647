"""Noisy predictions of a Trainer's model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from training_runs import Sentences, arguments, bert, same, weights

from hf_pacgen import noisy_predictions
from hf_pacgen.training.trainer import PACGenTrainer


def trainer(**settings: Any) -> PACGenTrainer:
    given = {"train_dataset": Sentences(24), "eval_dataset": Sentences(8, seed=1)} | settings
    return PACGenTrainer(bert(), arguments(per_device_eval_batch_size=5), **given)


def test_a_trainer_predicts_with_its_own_data() -> None:
    run = trainer()
    before = {name: tensor.clone() for name, tensor in weights(run.model).items()}
    state = torch.get_rng_state()
    found = run.predict_noisy(noise_scale=0.3, draws=2, seed=4)
    rows = [run.data_collator([Sentences(8, seed=1)[i] for i in range(8)])]
    alone = noisy_predictions(run.model, rows, 0.3, 2, seed=4, progress=False)
    torch.testing.assert_close(found.probabilities, alone.probabilities)
    assert found.metrics() == pytest.approx(alone.metrics(), abs=1e-6) and found.num_predictions == 8
    assert same(before, weights(run.model)) and torch.equal(state, torch.get_rng_state())
    other = run.predict_noisy([Sentences(3, seed=2)[i] for i in range(3)], 0.3, 2)
    assert other.num_predictions == 3


def test_the_size_is_found_on_its_training_data() -> None:
    found = trainer().predict_noisy(draws=2)
    assert found.auto["training_labels"] == 24 and found.noise["shape"] == "rows"


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"eval_dataset": None}, {"noise_scale": 0.1}, "got none, and the Trainer has no eval_dataset. Pass test_data"),
        ({"eval_dataset": {"a": Sentences(2)}}, {"noise_scale": 0.1}, "got several eval_datasets. Pass test_dataset"),
        ({"train_dataset": None}, {}, "expected a train_dataset in the Trainer, got none"),
    ],
)
def test_what_it_lacks_is_said(settings: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(**settings).predict_noisy(**options)
