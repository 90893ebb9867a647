"""The running mean over draws, and what is kept of many classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_pacgen.predictions import tally as tally_module
from hf_pacgen.predictions.reading import Places
from hf_pacgen.predictions.tally import MOST_CLASSES, TOP, Batch, Tally, cross_entropy, entropy, joined


def places(logits: torch.Tensor, labels: Any = None, unit: str = "example") -> Places:
    known = None if labels is None else torch.tensor(labels)
    return Places(logits=logits.double(), labels=known, rows=torch.arange(len(logits)), num_rows=len(logits), unit=unit)


def test_equal_draws_leave_their_value_bit_for_bit() -> None:
    given = places(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), [0, 1, 2, 0, 1])
    batch = Batch.of(given, None)
    for _ in range(7):
        batch.add(given)
    assert torch.equal(batch.mean, batch.plain) and not batch.squares.any()
    assert torch.equal(batch.entropies, entropy(batch.plain))


def test_a_chance_of_nothing_has_no_entropy() -> None:
    assert entropy(torch.tensor([1.0, 0.0])).item() == 0
    assert entropy(torch.tensor([0.5, 0.5])).item() == pytest.approx(0.6931472)


def test_of_a_vocabulary_some_are_kept_the_label_among_them() -> None:
    wide = torch.randn(4, MOST_CLASSES + 1, generator=torch.Generator().manual_seed(0))
    labels = wide.argmin(1).tolist()
    batch = Batch.of(places(wide, labels), None)
    assert batch.classes is not None and batch.classes.shape == (4, TOP) and batch.plain.shape == (4, TOP + 1)
    torch.testing.assert_close(batch.plain.sum(1), torch.ones(4, dtype=torch.float64))
    assert batch.label_at is not None and batch.label_at.tolist() == [TOP - 1] * 4
    assert Batch.of(places(wide[:, :-1]), None).classes is None


def test_rows_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    given = places(wide, [0, 1, 2, 3, 4, 0, 1])
    whole, few = Batch.of(given, None).plain, Batch.of(given, 2).plain
    monkeypatch.setattr(tally_module, "BLOCK", 11)
    assert torch.equal(Batch.of(given, None).plain, whole) and torch.equal(Batch.of(given, 2).plain, few)
    wanted = torch.nn.functional.cross_entropy(wide.double(), given.labels, reduction="sum")  # type: ignore[arg-type]
    assert cross_entropy(given) == pytest.approx(wanted.item()) and cross_entropy(places(wide)) == 0


def test_batches_are_kept_by_their_number() -> None:
    tally = Tally()
    for index in (2, 0):
        tally.start(index, places(torch.zeros(2, 2)))
    tally.add(2, places(torch.ones(2, 2)))
    assert {index: batch.draws for index, batch in tally.batches.items()} == {2: 1, 0: 0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([places(torch.zeros(0, 2), [])], "The data has nothing to predict"),
        ([], "The data has nothing to predict"),
        ([places(torch.zeros(1, 2)), places(torch.zeros(1, 3))], r"different numbers of classes \(\[2, 3\]\)"),
        ([places(torch.zeros(1, 2)), places(torch.zeros(1, 2), [0])], "labels of another form than others, or none"),
        ([places(torch.zeros(1, 2)), places(torch.zeros(1, 2), unit="token")], "labels of another form"),
    ],
)
def test_batches_that_make_no_table_are_refused(given: list[Places], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        joined([Batch.of(one, None) for one in given])
