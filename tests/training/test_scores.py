"""`last_score` and a card have the score of the weights as they are, or none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from huggingface_hub import metadata_load
from transformers import Trainer, TrainingArguments

from hf_pacgen import PACGenCallback, PACGenTrainer, ScoreConfig, pacgen
from hf_pacgen.training.scores import Scores, corrected_log

SCORE = ScoreConfig(lipschitz_directions=0)
BATCH = tiny.examples("bert", 8)


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {key: value[index] for key, value in BATCH.items()}


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "pacgen", "greater_is_better": False}
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "learning_rate": 0.1}
    return TrainingArguments(str(folder), **settings | best | quiet | changes)


def trainer(folder: Path, **changes: Any) -> PACGenTrainer:
    model = tiny.make("bert", dtype=torch.float32)
    return PACGenTrainer(model, arguments(folder, **changes), train_dataset=Rows(), eval_dataset=Rows(), score=SCORE)


def on_card(folder: Path) -> list[float]:
    index = metadata_load(folder / "README.md").get("model-index", [])  # type: ignore[union-attr]
    metrics = [metric for entry in index for group in entry["results"] for metric in group["metrics"]]
    return [metric["value"] for metric in metrics if metric["type"] == "pacgen"]


def test_the_best_model_has_its_own_score(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    assert str(run.state.best_model_checkpoint).endswith("checkpoint-2")  # scores rise
    now = run.pacgen()
    assert run.last_score is not None and run.last_score.score == now.score == run.state.best_metric
    log = list(run.state.log_history)
    last = [entry["eval_pacgen"] for entry in log if "eval_pacgen" in entry][-1]
    assert last != now.score
    run.create_model_card()
    assert on_card(tmp_path) == [now.score] and run.state.log_history == log
    text = (tmp_path / "README.md").read_text()
    (result,) = re.findall(r"^- Pacgen: (.*)$", text, re.MULTILINE)  # what transformers says of the evaluation
    assert float(result) == pytest.approx(now.score, abs=1e-3)
    assert (tmp_path / "pacgen.json").is_file()
    # more training
    run.args.max_steps, run.args.eval_strategy, run.args.load_best_model_at_end = 1, "no", False
    run.train()
    assert run.last_score is None
    run.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert on_card(tmp_path) == [] and "- Pacgen:" not in text and not (tmp_path / "pacgen.json").exists()
    value = run.evaluate()["eval_pacgen"]
    run.create_model_card()
    assert on_card(tmp_path) == [value] == [run.last_score.score]  # type: ignore[union-attr]


def test_another_trial_has_another_score(tmp_path: Path) -> None:
    run = trainer(tmp_path, load_best_model_at_end=False)
    run.train()
    first = run.last_score
    assert first is not None
    torch.manual_seed(5)
    run.model = tiny.bert().float()  # as a hyperparameter search makes it anew
    assert run.last_score is None
    run.create_model_card()
    assert on_card(tmp_path) == []


def test_a_callback_too(tmp_path: Path) -> None:
    callback = PACGenCallback(score=SCORE)
    assert callback.last_score is None
    model = tiny.make("bert", dtype=torch.float32)
    args = arguments(tmp_path, metric_for_best_model="loss", greater_is_better=True)  # whatever comes first
    run = Trainer(model, args, train_dataset=Rows(), eval_dataset=Rows(), callbacks=[callback])
    run.train()
    expected = pacgen(model, [BATCH], config=SCORE, progress=False)
    assert callback.last_score is not None
    assert callback.last_score.loss == pytest.approx(expected.loss, rel=1e-4)
    assert callback.last_score.origin["model"]["weights"] == expected.origin["model"]["weights"]
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert callback.last_score is None


def test_scores_without_weights_are_not_found() -> None:
    scores = Scores()
    assert scores.of(None) is None
    nowhere = torch.nn.Linear(1, 1, device="meta")
    scores.add(nowhere, None)  # type: ignore[arg-type]
    assert scores.of(nowhere) is None
    log = [{"loss": 1.0}, {"eval_loss": 1.0, "eval_a_pacgen_kl": 2.0, "eval_a_hessian_trace": 1.0, "step": 3}]
    assert corrected_log(log, None) == [*log, {"eval_loss": 1.0, "step": 3}] and corrected_log(log[:1], None) == log[:1]
