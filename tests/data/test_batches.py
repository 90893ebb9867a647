"""Batches with stable numbers: the same in every pass and every process, whatever the data came as."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import datasets
import numpy
import pytest
import tiny
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from hf_pacgen.data.batches import Batches, _Form, length
from hf_pacgen.distributed.processes import Processes

MODEL = tiny.make("bert")


class Rows(Dataset[dict[str, Any]]):
    """Examples that name their own number."""

    def __init__(self, count: int) -> None:
        self.count, self.read = count, list[int]()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        return {"x": torch.tensor(float(index))}


class Stream(IterableDataset[dict[str, Any]]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (Rows(self.count)[i] for i in range(self.count))


def together(rank: int, size: int) -> Processes:
    processes = Processes()
    processes.rank, processes.size = rank, size
    return processes


def batches(data: Any, **settings: Any) -> Batches:
    return Batches(data, model=MODEL, **{"batch_size": 2} | settings)


def numbers(batch: Any) -> list[int]:
    return [int(value) for value in (batch["x"] if isinstance(batch, dict) else batch[0])]


def seen(found: Any) -> dict[int, list[int]]:
    return {index: numbers(batch) for index, batch in found}


SEVEN = {0: [0, 1], 1: [2, 3], 2: [4, 5], 3: [6]}
FORMS: dict[str, Any] = {
    "rows": lambda: Rows(7),
    "stream": lambda: Stream(7),
    "loader": lambda: DataLoader(Rows(7), batch_size=2),
    "list": lambda: list(DataLoader(Rows(7), batch_size=2)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_batches_in_every_pass(form: str) -> None:
    made = batches(FORMS[form]())
    assert seen(made) == seen(made) == SEVEN
    assert made.num_examples() == 7
    assert made.count() == (None if form == "stream" else 4)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("form", FORMS)
def test_processes_share_the_batches_without_repeats(form: str, size: int) -> None:
    made = [batches(FORMS[form](), processes=together(rank, size)) for rank in range(size)]
    shares = [seen(one) for one in made]
    assert sum(map(len, shares)) == 4 and {i: b for share in shares for i, b in share.items()} == SEVEN
    for rank, one in enumerate(made):
        assert one.share(range(4)) == len(shares[rank])
        assert one.count() in (None, len(shares[rank]))
        assert seen(one.only([1, 3, 3])) == {1: [2, 3], 3: [6]} and seen(one.head(2)) == {0: [0, 1], 1: [2, 3]}
        assert seen(one.without({0, 3})) == {i: b for i, b in shares[rank].items() if i not in (0, 3)}


def test_only_what_is_due_is_read() -> None:
    rows = Rows(7)
    made = batches(rows, processes=together(1, 2))
    list(made.without({1}))
    assert rows.read == [6]
    rows.read.clear()
    assert list(made.only([])) == [] and rows.read == []
    list(made.only([0]))
    assert rows.read == [0, 1]


class Counted:
    """Batches that count how many were asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for index in range(4):
            self.asked += 1
            yield {"x": torch.tensor([float(index)])}


def test_nothing_is_read_beyond_the_last_batch_wanted() -> None:
    data = Counted()
    made = batches(data)
    assert seen(made.only([1, 0, 1])) == {0: [0], 1: [1]} and data.asked == 2
    assert seen(made.head(1)) == {0: [0]} and data.asked == 3
    assert seen(made.only([])) == {} and data.asked == 3
    assert seen(batches(data, max_examples=2)) == {0: [0], 1: [1]} and data.asked == 5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("most", [1, 3, 7, 9])
def test_at_most_so_many_examples(form: str, most: int) -> None:
    found = seen(batches(FORMS[form](), max_examples=most))
    chosen = [i for batch in found.values() for i in batch]
    assert len(chosen) == min(most, 7) and chosen == sorted(set(chosen))
    if form != "rows" or most >= 7:
        assert chosen == list(range(min(most, 7)))  # the first of what has no numbers


def test_a_subset_of_rows_is_random_and_seeded() -> None:
    def chosen(seed: int) -> list[int]:
        return [i for batch in seen(batches(Rows(100), max_examples=50, seed=seed)).values() for i in batch]

    assert chosen(0) == chosen(0) != chosen(1)
    counts = numpy.bincount([i for seed in range(40) for i in chosen(seed)], minlength=100)
    assert abs(counts - 20).max() < 5 * (40 * 0.25) ** 0.5  # each with probability 1/2


class Jitter(Rows):
    """Draws from all three generators, as augmentations do."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.tensor([random.random(), numpy.random.rand(), float(torch.rand(()))])}


def values(found: Any) -> dict[int, Tensor]:
    return {index: batch["x"] for index, batch in found}


def test_what_is_drawn_in_a_batch_is_the_same_in_every_pass_and_process() -> None:
    whole = values(batches(Jitter(6)))
    again = batches(Jitter(6), processes=together(1, 2))
    for index, value in (*values(again).items(), *values(again).items(), *values(again.head(3)).items()):
        assert value.equal(whole[index])
    assert not whole[0].equal(whole[1])
    assert not values(batches(Jitter(6), seed=1))[0].equal(whole[0])


def test_loaders_that_shuffle_are_reseeded_and_given_back() -> None:
    own, sampled = torch.Generator().manual_seed(5), torch.Generator().manual_seed(6)
    loaders = (
        DataLoader(Rows(7), batch_size=2, shuffle=True),
        DataLoader(Rows(7), batch_size=2, shuffle=True, generator=own),
        DataLoader(Rows(7), batch_size=2, sampler=RandomSampler(Rows(7), generator=sampled)),
    )
    for loader in loaders:
        states = own.get_state(), sampled.get_state()
        made = batches(loader)
        assert seen(made) == seen(made) != SEVEN and seen(made.head(2)) == {i: seen(made)[i] for i in (0, 1)}
        made.close()
        assert own.get_state().equal(states[0]) and sampled.get_state().equal(states[1])


def test_examples_are_fetched_together_where_that_is_possible() -> None:
    class Together(Rows):
        def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
            self.read.append(-len(indices))
            return [{"x": torch.tensor(float(i))} for i in indices]

    rows = Together(5)
    assert seen(batches(rows, batch_size=3)) == {0: [0, 1, 2], 1: [3, 4]} and rows.read == [-3, -2]


def test_a_collator_of_ones_own_gets_all_columns() -> None:
    data = datasets.Dataset.from_dict({"text": ["a", "bb", "ccc"], "label": [1, 0, 1]})
    made = batches(data, collate_fn=lambda rows: {"x": torch.tensor([float(len(r["text"])) for r in rows])})
    assert seen(made) == {0: [1, 2], 1: [3]}


def test_the_number_of_examples_is_that_of_the_data() -> None:
    assert batches(Rows(7), max_examples=3).num_examples() == 7
    loader = DataLoader(Rows(7), batch_size=2, drop_last=True)
    assert batches(loader).num_examples() == 6 and batches(loader).count() == 3
    assert batches(DataLoader(Stream(5), batch_size=2)).num_examples() == 5
    assert batches(FORMS["list"](), max_examples=3).count() is None


def test_lengths() -> None:
    assert length(Rows(7)) == length(DataLoader(Rows(7), batch_size=2)) == 7
    assert length([1, 2]) == 2 and length(Stream(3)) is None and length(DataLoader(Stream(3))) is None


@pytest.mark.parametrize(
    ("data", "form"),
    [
        ([{"x": 1}], "BATCHES"),
        (({"x": 1},), "BATCHES"),
        (TensorDataset(torch.zeros(3)), "ROWS"),
        (Rows(3), "ROWS"),
        (Stream(3), "STREAM"),
        (datasets.Dataset.from_dict({"x": [1]}), "ROWS"),
        (datasets.Dataset.from_dict({"x": [1]}).to_iterable_dataset(), "STREAM"),
        (DataLoader(Rows(3)), "LOADER"),
        (range(3), "BATCHES"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_data_is(data: Any, form: str) -> None:
    assert _Form.of(data) is _Form[form]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            {"x": torch.zeros(2)},
            TypeError,
            r"got dict\. If it is a batch or several splits, wrap a single batch in",
        ),
        (datasets.DatasetDict(), TypeError, r"got DatasetDict\. If .*, pick one of its splits"),
        ("tweets", TypeError, r"got str\. Load it first"),
        (b"tweets", TypeError, r"got bytes\. Load it first"),
        (7, TypeError, r"an iterable of batches; got int\."),
        (iter([1]), ValueError, r"data is an iterator \(list_iterator\), which is exhausted after one pass"),
        ((i for i in [1]), ValueError, r"data is an iterator \(generator\).* Pass a list of batches, a DataLoader or"),
    ],
)
def test_what_is_no_data(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        batches(data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1; got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0; got -1"),
        ({"max_examples": 0}, "max_examples must be an integer of at least 1; got 0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches(Rows(3), **settings)


def test_loaders_that_accelerate_has_cut_are_refused_on_several_processes() -> None:
    class Prepared(DataLoader[Any]):
        total_dataset_length = 3

    assert seen(batches(Prepared(Rows(3)))) == {0: [0], 1: [1], 2: [2]}
    with pytest.raises(ValueError, match=r"DataLoader prepared by accelerate, which repeats .* Pass the unprepared"):
        batches(Prepared(Rows(3)), processes=together(0, 2))


class Augmented(Rows):
    """With a generator of its own, as libraries for augmentation have."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.generator = torch.Generator().manual_seed(0)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.randn((), generator=self.generator)}


class Once(IterableDataset[dict[str, Any]]):
    """A stream that goes on where it was left, although its ``__iter__`` gives a new generator."""

    def __init__(self, count: int) -> None:
        self.stored = iter(Stream(count))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.stored


class Endless(IterableDataset[dict[str, Any]]):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        index = 0
        while True:
            yield {"x": torch.tensor(float(index))}
            index += 1


def test_steady_data_are_found_to_be_so() -> None:
    for data in (Rows(5), Stream(5), DataLoader(Rows(5), shuffle=True)):
        found, note = batches(data).compare_passes()
        assert found == f"the first {2} batches have the same checksums in two passes" and note is None
    assert "are a list" in batches([{"x": torch.zeros(2)}]).compare_passes()[0]


@pytest.mark.parametrize("loader", [False, True])
def test_data_that_change_are_kept(loader: bool) -> None:
    """Every pass is then the one that was drawn."""
    data: Any = DataLoader(Augmented(5), batch_size=2) if loader else Augmented(5)
    unsteady = batches(data)
    found, note = unsteady.compare_passes()
    assert "one pass was kept in memory" in found and note is not None and "The data differ from one pass" in note
    first, second = ([batch["x"].tolist() for _, batch in unsteady.every()] for _ in range(2))
    assert first == second and len(first) == 3


def test_data_that_change_and_are_too_large_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_pacgen.data.batches.MOST_KEPT", 10)
    with pytest.raises(ValueError, match=r"differ from one pass to the next .* more than the 0 MB that would be kept"):
        batches(Augmented(5)).compare_passes()
    with pytest.raises(ValueError, match="so the processes would measure different data"):
        batches(Augmented(5), processes=together(0, 2)).compare_passes()


def test_a_stream_that_goes_on_where_it_was_left_is_refused() -> None:
    with pytest.raises(ValueError, match="The data had 1 batches in one pass and 0 in another"):
        batches(Once(1)).compare_passes()
    for data in (Once(8), DataLoader(Once(8), batch_size=2)):
        with pytest.raises(ValueError, match=r"The data \(Once\) gave other batches in a second pass: it can be gone"):
            batches(data).compare_passes()


def test_a_pass_that_ends_elsewhere_is_refused() -> None:
    class Shrinking:
        def __init__(self) -> None:
            self.left = 4

        def __iter__(self) -> Iterator[Any]:
            self.left -= 1
            return iter([{"x": torch.zeros(2)}] * self.left)

    shrinking = batches(Shrinking())
    list(shrinking.every())
    with pytest.raises(ValueError, match="had 2 batches in one pass and 1 in another: every pass must give the same"):
        list(shrinking.every())


def test_an_endless_stream_is_not_counted() -> None:
    part = batches(Endless(), max_examples=3)
    assert [numbers(batch) for _, batch in part.every()] == [[0, 1], [2]]
    with pytest.raises(ValueError, match=r"a stream of more than 10,000 examples, .* Set num_training_examples"):
        part.num_examples()
    assert batches(Stream(30), max_examples=3).num_examples() == 30


def test_batches_are_cut_anew_and_shuffled() -> None:
    rows = batches(Rows(7))
    assert rows.recut(3)
    found = list(seen(rows.every()).values())
    order = [number for part in found for number in part]
    assert [len(part) for part in found] == [3, 3, 1] and sorted(order) == list(range(7)) != order
    assert not batches(Stream(3)).recut(2)


def test_pairs_that_become_two_rows_count_once() -> None:
    def pairs(rows: list[Any]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.stack([row["input_ids"] for row in rows] * 2)}

    data = [{"input_ids": torch.arange(3) + i} for i in range(5)]
    loader: Any = torch.utils.data.DataLoader(data, batch_size=2, collate_fn=pairs)  # type: ignore[arg-type]
    for given, options in ((loader, {}), (datasets.Dataset.from_list([{"input_ids": [1, 2]}] * 5), {"batch_size": 2})):
        batches = Batches(given, model=tiny.make("bert"), **options)  # type: ignore[arg-type]
        assert [batches.examples_in(index, batch) for index, batch in batches] == [2, 2, 1]
