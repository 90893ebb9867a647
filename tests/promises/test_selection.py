"""A model that was chosen on the held-out data is known by what its run has logged."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
import torch
from promised import promised
from transformers import AutoModelForSequenceClassification, EvalPrediction, Trainer, TrainingArguments

from hf_pacgen.errors import InputError
from hf_pacgen.promises.selection import Evaluations, check_selection, evaluations_of, run_folder


def rows(count: int, seed: int) -> datasets.Dataset:
    tokens = torch.randint(1, 12, (count, 6), generator=torch.Generator().manual_seed(seed))
    # the label is the majority of small tokens, with some noise
    labels = (
        (tokens < 6).sum(1) + torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(seed)) > 3
    ).long()
    return datasets.Dataset.from_dict({"input_ids": tokens.tolist(), "labels": labels.tolist()})


VALIDATION, TEST = rows(60, 1), rows(60, 2)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    scores: Any = prediction.predictions
    return {"accuracy": float((scores.argmax(-1) == prediction.label_ids).mean())}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four evaluations, of which the best is kept and saved in the run's own folder."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    args = TrainingArguments(
        str(folder),
        num_train_epochs=4,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_only_model=True,
    )
    trainer = Trainer(
        tiny.bert(num_labels=2),
        args,
        train_dataset=rows(80, 0),
        eval_dataset=VALIDATION,
        compute_metrics=accuracy,
    )
    trainer.train()
    trainer.save_model()
    return folder


def load(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder)


def checkpoints(run: Path) -> list[Path]:
    return sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))


def test_the_validation_data_that_chose_a_model_is_refused(run: Path) -> None:
    for folder in (run, *checkpoints(run)):  # a checkpoint's own state knows of the evaluations before it alone
        with pytest.raises(InputError, match=r"chosen on the held-out data: .* best by eval_accuracy of 4 evaluations"):
            promised(load(folder), VALIDATION)
    with pytest.raises(InputError, match="pay for the choice with candidates=4"):
        promised(load(run), VALIDATION, candidates=3)


def test_it_may_be_paid_for(run: Path) -> None:
    with pytest.warns(UserWarning, match="chosen by eval_accuracy among 4 evaluations on these data, which 4 pay for"):
        paid = promised(load(run), VALIDATION, candidates=4)
    assert paid.num_candidates == 4 and paid.share == 0.05 / 4
    assert any("which 4 pay for" in note for note in paid.notes)


def test_other_data_is_no_choice(run: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = promised(load(run), TEST)
    assert result.num_candidates == 1 and not any("chosen" in note for note in result.notes)


def test_a_model_in_memory_is_told_of_its_run(run: Path, tmp_path: Path) -> None:
    load(run).save_pretrained(tmp_path / "moved")
    moved = load(tmp_path / "moved")
    assert promised(moved, VALIDATION).num_candidates == 1  # nothing there tells
    for where in (run, str(checkpoints(run)[-1] / "trainer_state.json")):
        with pytest.raises(InputError, match="chosen on the held-out data"):
            promised(moved, VALIDATION, trainer_state=where)


def test_where_a_run_is_looked_for(run: Path) -> None:
    assert run_folder(load(run)) == run and run_folder(torch.nn.Linear(1, 1)) is None
    known = evaluations_of(checkpoints(run)[0])
    assert known is not None and len(known.logged) == known.number == 4 and known.metric == "eval_accuracy"
    assert evaluations_of(None) is None


def logged(best: float | None = 0.9, *entries: dict[str, float]) -> Evaluations:
    return Evaluations("run/trainer_state.json", best, "eval_accuracy", list(entries), len(entries))


def test_what_cannot_be_compared_is_said() -> None:
    entries = {"loss": 0.5, "accuracy": 0.9}, {"loss": 0.6, "accuracy": 0.8}
    same: dict[str, Any] = {"candidates": 1, "mean_loss": 0.50001, "accuracy": 0.7}
    with pytest.raises(InputError, match="best by eval_accuracy of 2 evaluations, one with the loss"):
        check_selection(logged(0.9, *entries), **same)
    other: dict[str, Any] = {"candidates": 1, "mean_loss": 0.55, "accuracy": 0.7}
    assert check_selection(logged(0.9, *entries), **other) is None
    assert check_selection(None, **other) is None and check_selection(logged(0.9), **other) is None
    # another loss in training, such as one with label smoothing
    assert "one with the accuracy that it has" in str(
        check_selection(logged(0.9, *entries), **other | {"accuracy": 0.8})
    )
    unknown = check_selection(logged(0.9, {"f1": 0.9}), **other)
    assert "cannot be compared with these: if they are the same, the promise holds only with candidates=1" in str(
        unknown
    )
    assert "cannot be compared" in str(check_selection(logged(0.9, *entries), **other | {"mean_loss": None}))
    looked = check_selection(logged(None, *entries), **same)
    assert "only if none of the 2 evaluations has decided anything, such as when to stop" in str(looked)
    assert check_selection(logged(None, *entries), **other) is None


def test_a_state_that_is_none(tmp_path: Path) -> None:
    state = tmp_path / "trainer_state.json"
    with pytest.raises(InputError, match=r"cannot be read as the state of a training run \(FileNotFoundError"):
        evaluations_of(state)
    for text in ("{", "[]", json.dumps({"log_history": 1}), json.dumps({"log_history": [1]})):
        state.write_text(text)
        with pytest.raises(InputError, match=r"expected the trainer_state.json that a Trainer writes"):
            evaluations_of(state)
        assert evaluations_of(tmp_path) is None  # of a file that merely lies there nothing is made
    state.write_text(json.dumps({"log_history": [{"loss": 1.0}], "best_metric": None}))
    assert evaluations_of(state) == Evaluations(str(state), None, "", [], 0)


def test_evaluations_on_several_data_sets_are_of_one_model(tmp_path: Path) -> None:
    history = [{"eval_a_loss": 0.5, "step": 1}, {"eval_b_loss": 0.7, "step": 1}, {"eval_a_loss": 0.4, "step": 2}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history, "best_metric": 0.4}))
    known = evaluations_of(tmp_path)
    assert known is not None and known.number == 2 and known.metric == "eval_a_loss"
    with pytest.raises(InputError, match="best by eval_a_loss of 2 evaluations"):
        check_selection(known, candidates=1, mean_loss=0.7, accuracy=None)
    assert check_selection(known, candidates=1, mean_loss=0.6, accuracy=None) is None
