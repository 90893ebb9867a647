"""What the loss of a batch is: its units, its kind, and what a loss of the user's may return."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional

from hf_pacgen.data.contents import LABEL_NAMES
from hf_pacgen.data.losses import (
    IGNORED,
    BatchLoss,
    LossKind,
    custom_loss,
    is_causal,
    known_indices,
    require_units,
    scored_units,
)
from hf_pacgen.data.units import rules

T = torch.tensor


def test_a_kind_of_loss_says_how_labels_lie_to_logits() -> None:
    assert [kind.facts for kind in LossKind] == [1, 0, None, None]


@pytest.mark.parametrize("name", ["bert", "vit", "llama", "gpt2", "tokens"])
def test_units_are_what_the_models_own_mean_divides_by(name: str) -> None:
    """The summed cross-entropy of the scored units, over their number, is the model's loss."""
    model = tiny.bert_tokens().double().eval() if name == "tokens" else tiny.make(name)
    batch = tiny.examples(name, 5, ignore=0.4)
    outputs = model(**batch)
    kind = LossKind.CAUSAL if is_causal(model) else LossKind.ALIGNED
    count = rules(LABEL_NAMES, causal=is_causal(model))[0].count(batch)
    scored = scored_units(outputs.logits, batch["labels"], kind)
    assert scored is not None and len(scored[1]) == count
    total = functional.cross_entropy(*scored, reduction="sum")
    assert (total / count).item() == pytest.approx(outputs.loss.item(), rel=1e-6)
    assert is_causal(model) == (name in tiny.CAUSAL)


def test_virtual_tokens_before_the_labels_are_predicted_from() -> None:
    """Prompt tuning gives more logits than labels: even the first label has one that predicts it."""
    logits, labels = torch.randn(1, 5, 4), T([[1, 2, IGNORED]])
    scored = scored_units(logits, labels, LossKind.CAUSAL)
    assert scored is not None
    assert scored[0].equal(logits[0, 1:3]) and scored[1].tolist() == [1, 2]
    plain = scored_units(logits[:, :3], labels, LossKind.CAUSAL)
    assert plain is not None and plain[0].equal(logits[0, :1]) and plain[1].tolist() == [2]


def test_shapes_that_do_not_fit_and_kinds_without_scores() -> None:
    assert scored_units(torch.zeros(2, 3), T([0, 1]), LossKind.CAUSAL) is None
    assert scored_units(torch.zeros(1, 2, 3), T([[0, 1, 2]]), LossKind.CAUSAL) is None  # fewer logits than labels
    assert scored_units(torch.zeros(2, 3), T([0, 1, 2]), LossKind.ALIGNED) is None
    half = scored_units(torch.zeros(1, 3, dtype=torch.float16), T([0]), LossKind.ALIGNED)
    assert half is not None and half[0].dtype == torch.float32
    for kind in (LossKind.OTHER, LossKind.CUSTOM):
        with pytest.raises(ValueError, match="Only a cross-entropy has scored units, and this is a loss"):
            scored_units(torch.zeros(2, 3), T([0, 1]), kind)


@pytest.mark.parametrize("units", [3, 2.5, torch.tensor(3), torch.tensor([2.5]), numpy.float32(2.5), 0])
def test_what_a_loss_function_may_return(units: Any) -> None:
    total = torch.tensor(6.0, requires_grad=True)
    for pair in ((total, units), [total, units]):
        found = custom_loss(pair)
        assert found == BatchLoss(total, float(units)) and found.total.requires_grad


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, "got NoneType. Return"),
        ((), TypeError, "got a tuple of nothing"),
        ((torch.ones(()), 1, 2), TypeError, r"got a tuple of a tensor of shape \(\), int, int"),
        ([torch.ones(2, 3), [1]], TypeError, r"got a list of a tensor of shape \(2, 3\), a list of int"),
        ((torch.ones(()), torch.ones(2)), TypeError, r"got a tuple of a tensor of shape \(\), a tensor of shape \(2,"),
        ((torch.ones(2), 2), TypeError, r"got a tuple of a tensor of shape \(2,\), int"),
        ((torch.ones(()), "3"), TypeError, "the loss summed over units .not their mean. as a scalar tensor"),
        ((torch.ones(()), float("inf")), ValueError, "a finite num_units >= 0; got inf. Return the number of"),
        ((torch.ones(()), -0.5), ValueError, "a finite num_units >= 0; got -0.5"),
    ],
)
def test_what_it_may_not_return(returned: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        custom_loss(returned)


def test_a_place_that_is_not_there_names_its_batch() -> None:
    table = nn.Embedding(3, 2)
    with pytest.raises(ValueError, match=r"Batch 4 has a label or an input that .*\(index out of range in self\): exp"):
        with known_indices(4):
            table(T([3]))
    with pytest.raises(KeyError), known_indices(4):  # other errors pass as they are
        raise KeyError("x")


def test_data_without_units() -> None:
    require_units(0.5)
    with pytest.raises(ValueError, match=r"no loss unit: expected at least one labeled token or example, got none"):
        require_units(0)
