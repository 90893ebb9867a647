"""What the loss of a batch is: its kind, its units, and what a user's function may return."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn import functional

from hf_pacgen.data.losses import (
    IGNORED,
    LossKind,
    count_units,
    custom_loss,
    get_output,
    known_indices,
    loss_of,
    needs_labels,
    no_loss,
    one_example,
    require_units,
    scored_units,
)


def test_a_kind_of_loss_says_how_labels_lie_to_logits() -> None:
    assert [kind.facts for kind in LossKind] == [1, 0, None, None]


def test_scored_units_are_those_of_the_models_own_loss() -> None:
    for name, kind in (("llama", LossKind.CAUSAL), ("bert", LossKind.ALIGNED)):
        model, batch = tiny.make(name), tiny.examples(name, 4, ignore=0.3)
        outputs = model(**batch)
        scored = scored_units(outputs.logits, batch["labels"], kind)
        assert scored is not None
        assert functional.cross_entropy(*scored).item() == pytest.approx(outputs.loss.item(), rel=1e-6)
        assert len(scored[1]) == count_units(model, batch)


def test_labels_after_virtual_tokens_are_all_predicted() -> None:
    logits, labels = torch.randn(2, 7, 5), torch.randint(0, 5, (2, 4))
    scored = scored_units(logits, labels, LossKind.CAUSAL)
    assert scored is not None and scored[1].equal(labels.reshape(-1))
    assert scored[0].equal(logits[:, 2:6].reshape(-1, 5))


@pytest.mark.parametrize(
    ("logits", "labels", "kind"),
    [((2, 3, 5), (2, 4), LossKind.CAUSAL), ((2, 5), (2, 3), LossKind.CAUSAL), ((2, 3, 5), (2, 4), LossKind.ALIGNED)],
)
def test_shapes_that_do_not_fit_have_no_scored_units(logits: Any, labels: Any, kind: LossKind) -> None:
    assert scored_units(torch.zeros(logits), torch.zeros(labels, dtype=torch.long), kind) is None


def test_a_loss_without_logits_has_no_scored_units() -> None:
    with pytest.raises(ValueError, match="Only a cross-entropy has scored units, and this is a loss function that was"):
        scored_units(torch.zeros(2, 3), torch.zeros(2), LossKind.CUSTOM)


def test_outputs_are_objects_or_mappings() -> None:
    loss = torch.tensor([1.0, 3.0])
    assert loss_of({"loss": loss}, {}, 0).item() == 2
    assert get_output(type("Outputs", (), {"loss": loss})(), "loss") is loss and get_output({}, "loss") is None
    with pytest.raises(
        ValueError, match=r"Batch 4 gave no loss: .* the batch has \['x'\]. Add labels, or pass loss_fn"
    ):
        loss_of({}, {"x": 1}, 4)
    assert "Batch 4 gave no loss" in str(no_loss({"x": 1}, 4))


def test_the_first_labeled_example_alone() -> None:
    labels = torch.tensor([[IGNORED, IGNORED], [IGNORED, 1], [0, 1]])
    batch: dict[str, Tensor] = {"input_ids": torch.arange(3), "labels": labels}
    found = one_example(batch, labels)
    assert found["input_ids"].tolist() == [1] and found["labels"].tolist() == [[IGNORED, 1]]
    packed = batch | {"lengths": torch.tensor(2)}
    assert one_example(packed, labels) is packed  # it cannot be told apart from the others


def test_units_are_labeled_tokens_or_examples() -> None:
    tokens = {"labels": torch.tensor([[1, IGNORED, 2], [IGNORED, IGNORED, 3]])}
    assert count_units(tiny.bert_tokens(), tokens) == 3 and count_units(tiny.make("llama"), tokens) == 2
    assert count_units(tiny.make("bert"), {"labels": torch.tensor([0, 1])}) == 2
    assert count_units(tiny.make("bert"), {"labels": torch.randn(5, 2)}) == 5
    with pytest.raises(ValueError, match=r"The data has no loss unit: .* Check the labels, or the number of units"):
        require_units(0)


def test_labels_and_tokens_without_a_place_name_their_batch() -> None:
    with pytest.raises(ValueError, match="Batch 3 has a label or an input that the model has no place for"):
        with known_indices(3):
            torch.nn.Embedding(2, 2)(torch.tensor([5]))


def test_who_needs_labels() -> None:
    class Strict(torch.nn.Module):
        def forward(self, x: Tensor, labels: Tensor) -> None: ...

    assert needs_labels(Strict()) and not needs_labels(tiny.make("bert"))


@pytest.mark.parametrize("units", [3, 3.0, torch.tensor(3)])
def test_a_user_may_count_in_numbers_of_any_kind(units: Any) -> None:
    found = custom_loss((torch.tensor([2.0]), units))
    assert found.units == 3.0 and isinstance(found.units, float)
