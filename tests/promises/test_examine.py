"""What a pass shows: own errors, windows of one text, answers that are drawn at random."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from certificates import Head
from promised import head, held_out, promised
from torch import Tensor, nn
from torch.utils.data import Dataset

from hf_pacgen.maths.held_out_bounds import betting_bound

COUNT = 100


def test_own_errors() -> None:
    data = held_out(COUNT, 8, 25)

    def off(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch["features"])["logits"].softmax(-1)[:, 1] - batch["labels"]).abs()

    result = promised(head(), data, error_fn=off)
    losses = torch.cat([off(head(), batch) for batch in data]).double()
    assert result.error_bound == pytest.approx(betting_bound(losses.detach().numpy(), 0.05), abs=1e-9)
    assert result.loss == "error_fn" and "by its own error function" in result.statement
    targets = [{**batch, "labels": batch["labels"].float()} for batch in data]  # those of a regression
    assert promised(head(), targets, error_fn=off).error_bound == result.error_bound


class Windows(Dataset[dict[str, Tensor]]):
    """Examples of which a row may have several, as the command line makes them of long texts."""

    def __init__(self, where: list[tuple[int, int]], wrong: list[bool]) -> None:
        self.where, self.wrong = where, wrong

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        first = 1.0 + index / 100
        return {"features": torch.tensor([first, 0.0, 0.0]), "labels": torch.tensor(int(not self.wrong[index]))}


def test_windows_of_a_text_count_once() -> None:
    where = [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]
    data = Windows(where, [False, True, False, False, False, True])
    result = promised(head(), data)
    assert (result.num_examples, result.num_errors, result.unit) == (3, 2, "text")
    assert any("6 windows are of 3 texts, each of which counts once" in note for note in result.notes)
    brier = promised(head(), data, loss="brier")
    alone = [promised(head(), Windows([where[i]], [data.wrong[i]]), loss="brier") for i in (2,)]
    assert brier.num_examples == 3 and alone[0].num_examples == 1
    single = Windows([(0, 0), (1, 0)], [False, True])
    assert promised(head(), single).unit == "example"


def test_answers_drawn_at_random_are_said_to_be() -> None:
    class Rolling(Head):
        def forward(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            return super().forward(features + 3 * torch.randn_like(features), labels)

    result = promised(Rolling(3), held_out(COUNT, 1))
    assert any("draws random numbers in evaluation mode" in note for note in result.notes)
    assert not any("random" in note for note in promised(head(), held_out(COUNT, 1)).notes)


def test_examples_of_one_class_are_said_to_be() -> None:
    """As the first rows of a file that is sorted by its labels."""
    data = [{name: value[batch["labels"] == 1] for name, value in batch.items()} for batch in held_out(COUNT, 1)]
    result = promised(head(), data)
    assert any(
        "held-out examples have the class 1: the promise is of new ones that are drawn so" in n for n in result.notes
    )
    assert not any("have the class" in note for note in promised(head(), held_out(COUNT, 1)).notes)


def test_the_loss_of_the_model_is_not_asked_for() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = head()

        def forward(self, features: Tensor, labels: Any = None) -> dict[str, Tensor]:
            return {"logits": self.inner(features)["logits"]}

    data = held_out(COUNT, 2)
    assert promised(Bare(), data).error_bound == promised(head(), data).error_bound


def test_rows_that_are_no_examples_are_not_told_apart() -> None:
    data = [{**batch, "features": batch["features"].reshape(-1, 1)} for batch in held_out(20, 1)]

    def error_fn(model: Any, batch: Any) -> Tensor:
        return torch.zeros(20)

    result = promised(head(), data, error_fn=error_fn)
    assert any("not told apart by example" in note for note in result.notes)


def test_labels_of_two_forms_in_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_pacgen.promises import examine

    class Forgetful(examine.Reader):
        def answers(self, *args: Any) -> Any:
            _, found = super().answers(*args)
            return (examine.Form.CLASS if args[2] == 0 else examine.Form.SEVERAL), found

    monkeypatch.setattr(examine, "Reader", Forgetful)
    with pytest.raises(ValueError, match=r"Some batches have labels of another form than the first"):
        promised(head(), held_out(20, 1, 10), loss="exact_match")
