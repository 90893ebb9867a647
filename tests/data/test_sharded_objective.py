"""The loss of a sharded model: on every process that of the whole batch, with the gradient of one process."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from launch import on_two_processes
from sharded import check, same, whole
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from hf_pacgen.data.batches import Batches
from hf_pacgen.data.contents import take
from hf_pacgen.data.objective import Objective
from hf_pacgen.data.sharded_objective import ShardedObjective
from hf_pacgen.distributed.shards import Shards


def make(name: str) -> nn.Module:
    if name != "tokens":
        return tiny.make(name)
    torch.manual_seed(0)
    return tiny.bert_tokens().double().eval()


def parts(name: str) -> list[dict[str, Tensor]]:
    """Odd batches, one of a single example, one whose labels are all in its second half."""
    found = tiny.split(tiny.examples(name, 9, ignore=0.5 if name == "tokens" else 0.0), 5, 3, 1)
    if name == "tokens":
        found[0]["labels"][:2] = -100
    return found


def losses(objective: Objective, loss: Any) -> list[tuple[float, float, dict[str, Tensor]]]:
    """Loss, units and gradient of every batch."""
    found = []
    for index, batch in objective.batches.every():
        result, true = loss(objective, batch, index)
        result.backward()
        gradients = {n: p.grad for n, p in objective.parameters.items() if p.grad is not None}
        found.append((true.total.item(), true.units, {n: g.clone() for n, g in whole(gradients).items()}))
        for parameter in objective.parameters.values():
            parameter.grad = None
    return found


def plain(objective: Objective, batch: Any, index: int) -> Any:
    result = objective.loss(batch, index)
    return result.total, result


def sampled(objective: Objective, batch: Any, index: int) -> Any:
    return objective.sampled_loss(batch, index, key=17 + index)


def _as_one(name: str, kind: str, expected: list[tuple[float, float, dict[str, Tensor]]]) -> None:
    made = fully_shard(make(name))
    objective = ShardedObjective(made, Batches(parts(name), model=made), Shards(made))  # type: ignore[arg-type]
    objective.inspect()
    for number, (found, one) in enumerate(
        zip(losses(objective, {"plain": plain, "sampled": sampled}[kind]), expected, strict=True)
    ):
        check(found[0] == pytest.approx(one[0], rel=1e-10), f"loss {number}: {found[0]}, not {one[0]}")
        check(found[1] == one[1], f"units {number}: {found[1]}, not {one[1]}")
        same(found[2], one[2], f"gradients of batch {number}", tolerance=1e-6)


@pytest.mark.parametrize("kind", ["plain", "sampled"])
@pytest.mark.parametrize("name", ["bert", "tokens"])
def test_all_processes_have_the_numbers_of_one(name: str, kind: str) -> None:
    """Also of labels sampled from the model: each process draws those that one process would."""
    model = make(name)
    objective = Objective(model, Batches(parts(name), model=model))
    objective.inspect()
    on_two_processes(_as_one, name, kind, losses(objective, {"plain": plain, "sampled": sampled}[kind]))


def _not_finite() -> None:
    made = fully_shard(make("vit"))
    batch = tiny.examples("vit", 4)
    objective = ShardedObjective(made, Batches([batch], model=made), Shards(made))  # type: ignore[arg-type]
    objective.inspect()
    bad = batch | {"pixel_values": batch["pixel_values"].clone()}
    bad["pixel_values"][3] = torch.nan  # an example of the second process alone
    with pytest.raises(ValueError, match=r"The loss of batch 5 is nan: expected a finite number"):
        objective.loss(bad, 5)
    check(objective.loss(batch, 6).units == 4, "goes on")


def test_a_share_that_is_not_finite_is_refused_by_all() -> None:
    on_two_processes(_not_finite)


def test_some_examples_of_any_batch() -> None:
    x = torch.arange(8).view(4, 2)
    batch = {"x": x, "pair": (torch.arange(4), [torch.arange(3)]), "scale": torch.tensor(2.0), "name": "text"}
    taken = take(batch, [1, 3])
    assert taken["x"].equal(x[[1, 3]]) and isinstance(taken["pair"], tuple) and taken["pair"][0].tolist() == [1, 3]
    assert taken["pair"][1][0].tolist() == [0, 1, 2]  # of another length: no example's
    assert taken["scale"].item() == 2 and taken["name"] == "text"
