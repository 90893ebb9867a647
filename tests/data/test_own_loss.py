"""The loss that comes out of a model, by whatever form of output."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering

from hf_pacgen.data.contents import LABEL_NAMES
from hf_pacgen.data.own_loss import ModelLoss, OwnLoss, label_names_of


class Gives(nn.Module):
    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, **batch: Any) -> Any:
        return self.outputs


def test_a_loss_among_the_outputs() -> None:
    two = torch.tensor([1.0, 3.0])  # one a device, under DataParallel
    logits = torch.zeros(2, 3)
    for outputs in (SimpleNamespace(loss=two), {"loss": two}, (two, logits)):
        loss, given = ModelLoss()(Gives(outputs), {"labels": logits})
        assert loss is not None and loss.item() == 2 and given is outputs
    # without labels the first of a tuple is no loss, nor is one that is not a number
    bad: Any = (((two, logits), {}), ((logits, two), {"labels": two}), ({}, {}), ({"loss": None}, {}), ((), {}))
    for bare, batch in bad:
        assert ModelLoss()(Gives(bare), batch)[0] is None


def test_a_model_that_returns_tuples_has_the_same_loss() -> None:
    model, batch = tiny.make("bert"), tiny.examples("bert", 4)
    named = ModelLoss()(model, batch)[0]
    model.config.return_dict = False  # type: ignore[union-attr]
    assert isinstance(model(**batch), tuple)
    assert named is not None and ModelLoss()(model, batch)[0].equal(named)  # type: ignore[union-attr]


def test_labels_by_the_models_signature() -> None:
    assert label_names_of(tiny.make("bert")) == LABEL_NAMES
    sizes: Any = tiny.SIZES | {"vocab_size": 12, "max_position_embeddings": 8}
    assert label_names_of(BertForQuestionAnswering(BertConfig(**sizes)))[3:] == ("start_positions", "end_positions")


def test_a_batch_is_prepared_by_another_where_asked() -> None:
    class Prepares(OwnLoss):
        def prepare(self, batch: Any) -> Any:
            return {"x": batch["raw"]}

    assert ModelLoss(prepared_by=Prepares()).prepare({"raw": 1}) == {"x": 1} and ModelLoss().prepare(3) == 3
    with pytest.raises(NotImplementedError, match="OwnLoss must say what its loss is: define __call__"):
        OwnLoss()(nn.Identity(), {})
