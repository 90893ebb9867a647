"""Which parameters are measured, and which are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_pacgen.model.parameters import is_finite, trainable_parameters


def test_weights_without_elements_are_for_plans_alone() -> None:
    layer = nn.Linear(3, 2, device="meta")
    with pytest.raises(ValueError, match="on the meta device: its values are offloaded or were never loaded"):
        trainable_parameters(layer)
    assert list(trainable_parameters(layer, bare=True)) == ["weight", "bias"]
    layer.weight.requires_grad_(False)
    assert list(trainable_parameters(layer, bare=True)) == ["bias"]


def test_numbers_that_are_not_finite_are_found_where_there_are_any() -> None:
    assert is_finite(torch.full((3,), 3e38)) and not is_finite(torch.tensor([1.0, torch.inf]))
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="The weights 'bias' contain NaN or infinity"):
        trainable_parameters(layer, bare=True)
