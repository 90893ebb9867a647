"""The weights matter, and come back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_pacgen.curvature.checks import require_dependence, require_unchanged, weights_checksum
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.objective import Objective


def loss(model: Any, batch: Tensor) -> tuple[Tensor, int]:
    return model(batch).square().sum(), len(batch)


def test_weights_that_something_wrote_to_are_noticed() -> None:
    model, data = nn.Linear(5, 2), [torch.ones(3, 5)]
    objective = Objective(model, Batches(data, model=model), loss_fn=loss)
    with pytest.raises(ValueError, match="call inspect"):
        require_dependence(objective)
    objective.inspect()
    with WeightSpace(objective) as space:
        before = weights_checksum(space)
        require_unchanged(space, before)
        model.weight.data[0, 0] += 1
        with pytest.raises(RuntimeError, match="something wrote to them"):
            require_unchanged(space, before)
