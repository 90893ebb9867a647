"""Units of batches, and the rule that the losses of parts speak for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_pacgen.data.contents import LABEL_NAMES
from hf_pacgen.data.units import Cut, cuts, find_rule, rules

T = torch.tensor
LABELS = T([[1, 2, -100], [1, 255, 2], [1, -100, -100], [3, 2, 1]])
BATCH = {"x": torch.arange(4.0), "labels": LABELS}


def test_what_is_counted() -> None:
    counts = {rule.name: rule.count(BATCH) for rule in rules(LABEL_NAMES, causal=False, ignored=(3,))}
    assert counts["labels other than 255"] == 8 and counts["labels other than 3"] == 8 and counts["examples"] == 4
    first, shifted = rules(LABEL_NAMES, causal=False)[0], rules(LABEL_NAMES, causal=True)[0]
    assert first.count(BATCH) == 9 and shifted.count(BATCH) == 5
    # examples where labels are not of tokens
    for other in (
        {"labels": torch.rand(4, 3)},
        {"x": torch.zeros(4, 2)},
        {"labels": T([0, 1, -100, 2])},
        torch.zeros(4, 2),
    ):
        assert first.count(other) == 4
    kept = next(rule for rule in rules(LABEL_NAMES, causal=False) if "whose label" in rule.name)
    assert kept.count({"labels": T([0, 1, -100, 2])}) == 3 and kept.count(BATCH) == 4


def values(name: str, batch: Any) -> float:
    """A loss that is a mean of x, by one rule."""
    labels, x = batch["labels"], batch["x"]
    if name == "labels other than -100":
        each = (labels != -100).sum(1)
    elif name == "labels other than 255":
        each = ((labels != -100) & (labels != 255)).sum(1)
    elif name == "examples, over which the model's loss is a sum":
        return float(x.sum())
    else:
        each = torch.ones(len(x))
    return float((each * x).sum() / each.sum())


@pytest.mark.parametrize(
    "name",
    ["labels other than -100", "labels other than 255", "examples", "examples, over which the model's loss is a sum"],
)
def test_the_rule_is_the_one_that_made_the_losses(name: str) -> None:
    losses = [
        (cut, values(name, cut.whole), [values(name, part) for part in cut.parts])
        for cut in cuts(BATCH, 4, LABEL_NAMES)
    ]
    found = find_rule(rules(LABEL_NAMES, causal=False), losses, 1e-6)
    assert found is not None and found.name == name and found.adds == ("sum" in name)


def test_a_single_example_is_told_from_a_poorer_copy() -> None:
    """Half of its labels left out: a mean over labels, over examples and a sum then differ."""
    one = {"x": T([2.0, 3.0]), "labels": LABELS[[3, 1]]}
    assert len(list(cuts(one, 2, LABEL_NAMES))) == 2
    alone = list(cuts({key: value[:1] for key, value in one.items()}, 1, LABEL_NAMES))
    assert len(alone) == 1 and alone[0].parts[0]["labels"].tolist() == [[3, -100, 1]]
    assert alone[0].whole["labels"].shape == (2, 3)


def test_no_rule_and_no_parts() -> None:
    cut = Cut(BATCH, [{k: v[:2] for k, v in BATCH.items()}, {k: v[2:] for k, v in BATCH.items()}])
    assert find_rule(rules(LABEL_NAMES, causal=False), [(cut, 1.0, [5.0, 7.0])], 1e-6) is None
    assert find_rule(rules(LABEL_NAMES, causal=False), [(cut, 1.0, [float("nan"), 1.0])], 1e-6) is None
    for batch in (T([1, 2]), BATCH | {"other": torch.zeros(7)}, BATCH | {"names": ["a"]}):
        assert not list(cuts(batch, 4, LABEL_NAMES))


def test_labels_that_do_not_lie_one_after_another() -> None:
    labels = torch.arange(24).view(3, 2, 4).permute(1, 2, 0)  # as channels that were moved
    batch = {"pixel_values": torch.zeros(2, 3), "labels": labels}
    assert not labels.is_contiguous() and len(list(cuts(batch, 2, ["labels"]))) == 2
