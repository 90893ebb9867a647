"""Scores in a training run: where they arrive, of what data, and that they change nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import Sentences, arguments, bert, llama, make, same, trained, weights
from transformers import Trainer

from hf_pacgen.config import NoiseConfig, ScoreConfig
from hf_pacgen.training import trainer as trainer_module
from hf_pacgen.training.arguments import PACGenTrainingArguments
from hf_pacgen.training.callback.callback import PACGenCallback
from hf_pacgen.training.trainer import PACGenTrainer

SCORE = ScoreConfig(max_examples=8, lipschitz_directions=0)
KEYS = (
    "pacgen pacgen_per_parameter pacgen_kl pacgen_kl_per_parameter pacgen_kl_excess pacgen_kl_curvature "
    "pacgen_active_fraction pacgen_kl_active_fraction hessian_trace"
).split()


def scored(**settings: Any) -> PACGenTrainer:
    eval_dataset = settings.pop("eval_dataset", Sentences(8, seed=1))
    return PACGenTrainer(
        bert(), arguments(**settings), train_dataset=Sentences(), eval_dataset=eval_dataset, score=SCORE
    )


def test_reporters_get_the_scores(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = scored(
        eval_strategy="steps",
        eval_steps=3,
        report_to="tensorboard",
        output_dir=str(tmp_path),
    )
    run.train()
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = accumulator.EventAccumulator(str(file.parent))
    events.Reload()
    logged = [entry for entry in run.state.log_history if "eval_pacgen" in entry]
    for key in (*KEYS, "hessian_lipschitz"):
        found = [event.value for event in events.Scalars(f"eval/{key}")]
        assert found == pytest.approx([entry[f"eval_{key}"] for entry in logged], rel=1e-5) and len(found) == 2


def test_scores_change_nothing_in_the_training() -> None:
    settings: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2}
    plain = trained("plain", None, **settings)
    with_scores = scored(**settings)
    with_scores.train()
    assert same(weights(plain.model), weights(with_scores.model))
    assert with_scores.last_score is not None and with_scores.last_score.num_examples == 8


def test_the_score_is_of_the_training_data() -> None:
    run = scored()
    first = run.evaluate()["eval_pacgen_kl"]
    run.eval_dataset = Sentences(8, seed=5)
    assert run.evaluate()["eval_pacgen_kl"] == first and run.last_score is not None
    assert run.last_score.eta == 64 and run.last_score.num_examples == 8  # η = n is of the whole training set
    assert run.pacgen(ScoreConfig(max_examples=4, lipschitz_directions=0)).num_examples == 4


def test_several_datasets_share_a_score_and_predictions_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    score = trainer_module.score_on_training_data
    monkeypatch.setattr(trainer_module, "score_on_training_data", lambda *a, **k: calls.append(1) or score(*a, **k))
    run = scored(eval_dataset={"first": Sentences(8, seed=1), "second": Sentences(8, seed=2)})
    metrics = run.evaluate()
    assert metrics["eval_first_pacgen"] == metrics["eval_second_pacgen"] and len(calls) == 1
    run.evaluate()
    assert len(calls) == 2
    assert not any("pacgen" in key for key in run.predict(Sentences(8)).metrics or {}) and len(calls) == 2


def test_a_loss_of_the_trainers_own_is_the_one_that_is_scored() -> None:
    own = scored(label_smoothing_factor=0.2)
    plain = scored()
    for run in (own, plain):
        run.evaluate()
    assert own.last_score is not None and plain.last_score is not None
    assert own.last_score.estimator == plain.last_score.estimator == "blend"

    class Doubled(PACGenTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().compute_loss(*args, **kwargs)

    doubled = Doubled(bert(), arguments(), train_dataset=Sentences(), score=SCORE)
    assert doubled.pacgen().loss == pytest.approx(2 * plain.last_score.loss, rel=1e-4)


def test_a_loss_of_the_trainers_own_is_pooled_over_tokens() -> None:
    """Batches with few labeled tokens weigh little, as in the model's own loss."""
    data = Sentences(8, causal=True)
    data.labels = data.labels.clone()
    for row in range(6):
        data.labels[row, row + 2 :] = -100
    found = []
    for batch_size in (1, 3, 8):
        settings = arguments(label_smoothing_factor=0.1, per_device_eval_batch_size=batch_size)
        run = PACGenTrainer(llama(), settings, train_dataset=data, score=SCORE)
        found.append(run.pacgen(ScoreConfig(lipschitz_directions=0)).loss)
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def test_a_list_of_examples_is_a_dataset() -> None:
    """The Trainer takes one, while to ``pacgen()`` a list is one of batches."""
    noise, data = NoiseConfig(curvature="hutchinson", curvature_every=3), Sentences()  # type: ignore[arg-type]
    runs = []
    for examples in (data, [data[i] for i in range(len(data))]):
        runs.append(PACGenTrainer(bert(), arguments(), train_dataset=examples, noise=noise, score=SCORE))
        runs[-1].train()
    assert same(weights(runs[0].model), weights(runs[1].model))
    assert runs[0].pacgen().score == runs[1].pacgen().score


@pytest.mark.parametrize("when, count", [("evaluate", 4), ("epoch", 2), ("end", 1)])
def test_a_callback_scores_when_it_is_told(when: str, count: int) -> None:
    callback = PACGenCallback(score=SCORE, score_on=when)
    settings: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 10, "max_steps": -1, "num_train_epochs": 2}
    run = trained("plain", None, callbacks=[callback], **settings)
    prefix = "eval" if when == "evaluate" else "train"
    entries = [entry for entry in run.state.log_history if f"{prefix}_pacgen" in entry]
    assert len(entries) == count and callback.last_score is not None
    assert all({f"{prefix}_{key}" for key in KEYS} <= entry.keys() for entry in entries)
    assert same(weights(run.model), weights(trained("plain", None, **settings).model))


def test_a_callback_has_no_data_before_training(caplog: pytest.LogCaptureFixture) -> None:
    run = make("plain", None, callbacks=[PACGenCallback(score=SCORE)])
    with caplog.at_level(logging.WARNING):
        assert "eval_pacgen" not in run.evaluate()
    assert "the callback knows the training data only once training has begun" in caplog.text


def test_arguments_carry_the_settings(tmp_path: Path) -> None:
    args = arguments(
        PACGenTrainingArguments, noise={"eta": 100}, score='{"max_examples": 4}', output_dir=str(tmp_path), max_steps=2
    )
    run = PACGenTrainer(bert(), args, train_dataset=Sentences())
    assert run.noise == NoiseConfig(eta=100) and run.score == ScoreConfig(max_examples=4)
    run.train()
    run.save_model()
    saved = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert saved.noise_config == run.noise and args.to_dict()["score"]["max_examples"] == 4
    assert isinstance(run, Trainer)
