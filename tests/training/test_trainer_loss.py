"""The loss that is trained: the callback's scores and the PACGenTrainer's are of the Trainer's loss, whatever it is."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import training_runs as runs
from launch import on_two_processes
from torch import Tensor
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from hf_pacgen import NoiseConfig, PACGenCallback, PACGenTrainer, ScoreConfig
from hf_pacgen.data.own_loss import ModelLoss
from hf_pacgen.training.trainer_loss import TrainerLoss, find_trainer, loss_of_trainer

WEIGHTS = torch.tensor([4.0, 1.0, 0.25])
SCORE = ScoreConfig(estimator="hutchinson", lipschitz_directions=1)


class Weighted(Trainer):
    """Class weights, and what a subclass may return besides the loss."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = functional.cross_entropy(outputs.logits, labels, weight=WEIGHTS)
        return (loss, outputs) if return_outputs else loss


class Gathers(Weighted):
    """Averages something over the processes in its loss, as trainers of TRL do for their logs."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        result = super().compute_loss(model, inputs, return_outputs, **kwargs)
        self.accelerator.gather_for_metrics(torch.ones(1))
        return result


class Dropping(Trainer):
    """Its data has a column that the model does not take."""

    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = super()._prepare_inputs(inputs)  # type: ignore[no-untyped-call]
        return {key: value for key, value in inputs.items() if key != "weight_of_example"}


def shared_out(outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
    """What the documentation of transformers shows: a sum, divided by the number of items."""
    return functional.cross_entropy(outputs.logits, labels, weight=WEIGHTS, reduction="sum") / num_items_in_batch


class Heavier(runs.Sentences):
    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return super().__getitem__(index) | {"weight_of_example": torch.tensor(1.0)}


class Tagged(runs.Sentences):
    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = super().__getitem__(index)
        return {"input_ids": row["input_ids"], "tags": row["labels"]}


def truths(model: Any) -> dict[str, float]:
    """The mean losses over all 64 examples."""
    data = runs.Sentences()
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=data.tokens).logits
    plain = functional.cross_entropy(logits, data.labels).item()
    summed = functional.cross_entropy(logits, data.labels, weight=WEIGHTS, reduction="sum").item()
    return {
        "weights": functional.cross_entropy(logits, data.labels, weight=WEIGHTS).item(),
        "function": summed / len(data),
        "smoothing": 0.9 * plain - 0.1 * logits.log_softmax(-1).mean().item(),
        "prepared": plain,
        "model": plain,
        "gathers": functional.cross_entropy(logits, data.labels, weight=WEIGHTS).item(),
    }


CASES: dict[str, tuple[type[Trainer], dict[str, Any], dict[str, Any]]] = {
    "weights": (Weighted, {}, {}),
    "function": (Trainer, {"compute_loss_func": shared_out}, {}),
    "smoothing": (Trainer, {}, {"label_smoothing_factor": 0.1}),
    "prepared": (Dropping, {"train_dataset": Heavier()}, {"remove_unused_columns": False}),
    "model": (Trainer, {}, {}),
    "gathers": (Gathers, {}, {}),
}


def made(shell: str, case: str, **more: Any) -> Trainer:
    kind, given, settings = CASES[case]
    arguments: Any = {"per_device_eval_batch_size": 24, "max_steps": 1, "learning_rate": 0.0, **settings}
    common = {
        "model": runs.bert(dropout=0.0),
        "args": runs.arguments(**arguments),
        "train_dataset": runs.Sentences(),
        "eval_dataset": runs.Sentences(8, seed=1),
        **given,
        **more,
    }
    if shell == "callback":
        callback = PACGenCallback(score=SCORE, score_on="end")
        return kind(callbacks=[callback], **common)
    both: Any = PACGenTrainer if kind is Trainer else type("Both", (PACGenTrainer, kind), {})
    return both(score=SCORE, **common)  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", CASES)
def test_callback_and_trainer_score_the_loss_that_is_trained(case: str) -> None:
    truth = truths(runs.bert(dropout=0.0))[case]
    plain = made("callback", case)
    plain.train()
    callback = next(c for c in plain.callback_handler.callbacks if isinstance(c, PACGenCallback))
    trainer = made("trainer", case)
    trainer.evaluate()
    one, two = callback.last_score, trainer.last_score  # type: ignore[attr-defined]
    assert one.loss == pytest.approx(truth, rel=1e-5)
    assert (one.loss, one.score, one.hessian_trace) == pytest.approx((two.loss, two.score, two.hessian_trace), rel=1e-6)
    assert not any("could not find the Trainer" in sentence for sentence in one.status)


@pytest.mark.parametrize("case", ["weights", "function", "prepared"])
def test_estimates_in_training_take_the_trainers_batches_and_loss(case: str) -> None:
    """Its ``_prepare_inputs`` and ``compute_loss``, or the model would be given a column it does not take."""
    noise = NoiseConfig(shape="pacgen", curvature="hutchinson", rho="estimate", curvature_every=1, rho_every=1)
    for shell in ("callback", "trainer"):
        kind, given, settings = CASES[case]
        common = {"model": runs.bert(), "args": runs.arguments(max_steps=2, **settings)}
        common |= {"train_dataset": runs.Sentences(), **given}
        if shell == "callback":
            kind(callbacks=[PACGenCallback(noise=noise)], **common).train()
        else:
            both: Any = PACGenTrainer if kind is Trainer else type("Both", (PACGenTrainer, kind), {})
            both(noise=noise, **common).train()


def test_the_trainers_label_names_tell_what_is_ignored() -> None:
    """Labels of tokens under another name: the mean over those that count, whatever the batches."""

    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table = torch.nn.Embedding(runs.VOCABULARY, 4)
            self.head = torch.nn.Linear(4, 3)
            self.config = None

        def forward(self, input_ids: Tensor, tags: Tensor | None = None) -> Any:
            logits = self.head(self.table(input_ids))
            if tags is None:
                return {"logits": logits}
            return {"loss": functional.cross_entropy(logits.flatten(0, 1), tags.flatten()), "logits": logits}

    data: Any = Tagged(24)
    data.labels = torch.where(torch.rand(24, 10) < 0.5, -100, torch.randint(0, 3, (24, 10)))
    data.labels[:8, 1:] = -100
    model: Any = Tagger()
    logits = model(input_ids=data.tokens)["logits"]
    truth = functional.cross_entropy(logits.flatten(0, 1), data.labels.flatten()).item()
    for size in (4, 16):
        args = runs.arguments(label_names=["tags"], per_device_eval_batch_size=size)
        trainer = PACGenTrainer(model=model, args=args, train_dataset=data, score=SCORE)
        assert trainer.pacgen().loss == pytest.approx(truth, rel=1e-6)


def test_without_a_trainer_the_models_own_loss_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model, callback = runs.bert(dropout=0.0), PACGenCallback(score=SCORE, score_on="end")
    assert find_trainer(model) is None
    args = runs.arguments(per_device_eval_batch_size=8)
    state: Any = type("State", (), {"epoch": 1, "global_step": 1, "log_history": []})()
    loader = torch.utils.data.DataLoader(runs.Sentences(8))
    with caplog.at_level(logging.WARNING):
        callback.on_train_end(args, state, None, model=model, train_dataloader=loader)
    assert "could not find the Trainer, whose loss may be another" in caplog.text
    assert callback.last_score is not None and "could not find the Trainer" in callback.last_score.status[-1]


def test_which_loss_a_trainer_has() -> None:
    model = runs.bert()

    def kind(trainer: type[Trainer] = Trainer, **given: Any) -> Any:
        args = TrainingArguments(report_to="none", use_cpu=True, **given.pop("settings", {}))
        return loss_of_trainer(trainer(model=model, args=args, **given))

    assert isinstance(kind(), ModelLoss) and kind().batch_size == 8
    assert kind(Weighted).name == "Weighted.compute_loss"
    assert kind(compute_loss_func=shared_out).name == "the compute_loss_func of Trainer"
    assert kind(settings={"label_smoothing_factor": 0.1}).name == "the label smoothing of the Trainer"
    assert isinstance(kind(Dropping), TrainerLoss)
    assert kind(settings={"label_names": ["tags"]}).label_names[:2] == ("tags", "labels")


def _scored(expected: dict[str, float]) -> None:
    for case, loss in expected.items():
        trainer: Any = made("trainer", case, train_dataset=runs.Sentences(40))
        assert abs(trainer.pacgen().loss - loss) < 1e-5 * loss, case


def test_two_processes_score_the_loss_of_one() -> None:
    """Although they are at other batches, and have two and one of three: nothing is gathered in a loss."""
    cases = ("gathers", "function", "smoothing")
    expected = {case: made("trainer", case, train_dataset=runs.Sentences(40)).pacgen().loss for case in cases}  # type: ignore
    on_two_processes(_scored, expected)
