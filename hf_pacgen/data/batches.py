"""Data as re-iterable batches with stable numbers, whatever it came as."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hf_pacgen.config.settings import count
from hf_pacgen.config.settings import seed as seed_rule
from hf_pacgen.data.checksums import batch_checksum
from hf_pacgen.data.collation import collate, model_columns
from hf_pacgen.data.contents import batch_tensors, count_examples, documents, truncate
from hf_pacgen.distributed.processes import Processes
from hf_pacgen.model.state import seed_everything

__all__ = ["Batches", "length", "read_twice"]

COMPARED = 2
"""Batches whose checksums are compared over two passes."""
MOST_KEPT = 1 << 30
"""Bytes of data that are kept in memory where every pass would give other ones."""
MOST_COUNTED = 10_000
"""Examples of a stream that are counted at least, where a part of it is measured and nothing tells its length."""


class Batches:
    """The batches of a pass over the data, each with its index; every pass gives the same ones.

    Random collators and shuffling loaders are reseeded, so that a batch is the same in every pass
    (and, for a dataset, in every process).  A process gets the batches whose index it is due.

    Args:
        data: a DataLoader, a map-style or iterable dataset, or a re-iterable of batches.
        model: whose ``forward`` says which columns of a dataset are used.
        batch_size, collate_fn: for datasets, and a list of examples with its ``collate_fn``; by default columns are
            stacked and ragged ones padded.
        max_examples: a seeded random subset of a map-style dataset, the first of any other data.
        seed: of the subset and of what the data draws at random.
    """

    def __init__(
        self,
        data: Any,
        *,
        model: nn.Module,
        batch_size: int = 8,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        max_examples: int | None = None,
        seed: int = 0,
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes or Processes()
        self.batch_size, self.seed = count(batch_size, "batch_size"), seed_rule(seed, "seed")
        self.max_examples = None if max_examples is None else count(max_examples, "max_examples")
        own = getattr(data, "collate_examples", None)  # of a dataset whose examples are not stacked as others are
        self.collate: Callable[[list[Any]], Any] = collate_fn or own or (lambda rows: collate(rows, model))
        self.indices: list[list[int]] | None = None
        self._kept: list[tuple[int, Any]] | None = None
        self._number: int | None = None  # of batches in a whole pass, once one was gone through
        self.form = form = _Form.of(data, of_examples=collate_fn is not None)
        if form is _Form.LOADER and self.processes.size > 1 and hasattr(data, "total_dataset_length"):
            # accelerate's prepared loaders give each process its share, and repeat examples to even them out
            raise ValueError(
                "data is a DataLoader prepared by accelerate, which repeats examples so that all processes get equally "
                "many. Pass the unprepared DataLoader or the dataset: the batches are shared out without repeats."
            )
        if form in (_Form.ROWS, _Form.STREAM) and collate_fn is None and hasattr(data, "column_names"):
            data = model_columns(data, model)
        if form is _Form.ROWS:
            self.indices = self._choose(len(data))
        elif form is _Form.STREAM:
            data = DataLoader(data, batch_size=self.batch_size, collate_fn=self.collate)
        elif form not in (_Form.LOADER, _Form.BATCHES):
            raise ValueError(f"There is no way yet to go over {form.value}: say here how.")
        self.data = data
        loaded = isinstance(data, DataLoader)
        self._generator_states = [(g, g.get_state()) for g in _generators(data)] if loaded else []
        self.examples_per_pass: int | None = None
        """Number of examples in one pass (before any share of a process), known after one."""

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """The batches of this process, with their indices among all batches."""
        return self.every(lambda index: index % self.processes.size == self.processes.rank)

    def without(self, skipped: Container[int]) -> Iterator[tuple[int, Any]]:
        """The batches of this process but for some, which are not even loaded where that is possible."""
        size, rank = self.processes.size, self.processes.rank
        return self.every(lambda index: index % size == rank and index not in skipped)

    def share(self, indices: Collection[int]) -> int:
        """How many of some batches are those of this process."""
        return sum(index % self.processes.size == self.processes.rank for index in indices)

    def only(self, wanted: Collection[int]) -> Iterator[tuple[int, Any]]:
        """Some batches by their indices, the same in every process."""
        left = len(set(wanted))
        if left:
            for index, batch in self.every(lambda index: index in wanted):
                yield index, batch
                left -= 1
                if left == 0:
                    return

    def head(self, count: int) -> list[tuple[int, Any]]:
        """The first ``count`` batches, the same in every process."""
        first: list[tuple[int, Any]] = []
        for index, batch in self.every():
            first.append((index, batch))
            if len(first) == count:
                break
        return first

    def sample(self, count: int) -> list[tuple[int, Any]]:
        """The first batch, and where they can be had one by one about ``count`` others, spread evenly."""
        known = self.data if self.indices is None and isinstance(self.data, (list, tuple)) else self.indices
        last = len(known) - 1 if known else 0
        return list(self.only({*range(0, last, -(-last // count) or 1), last}))

    def drawn(self, key: int) -> Iterator[tuple[int, Any]]:
        """All batches in a random order, the same in every process; of data of unknown length, in their own order.

        Each is fetched when it is asked for, where batches can be had one by one.
        """
        total = self._total()
        if total is None:
            yield from self.every()
            return
        order = torch.randperm(total, generator=torch.Generator().manual_seed(key & (2**63 - 1))).tolist()
        if self.indices is not None or isinstance(self.data, (list, tuple)):
            for index in order:
                yield from self.only({index})
            return
        for start in range(0, total, 8):  # a loader is gone through for every few of them
            found = dict(self.only(set(order[start : start + 8])))
            yield from ((index, found[index]) for index in order[start : start + 8] if index in found)

    @property
    def draws_at_random(self) -> bool:
        """Whether :meth:`drawn` has a random order: batches whose number is not known beforehand come in their own."""
        return self._total() is not None

    @property
    def is_subset(self) -> bool:
        """Whether ``max_examples`` leaves out some of the data, or may."""
        if self.max_examples is None:
            return False
        return self.indices is None or self.max_examples < len(self.data)

    def num_examples(self) -> int:
        """Number of examples in the data given, before ``max_examples``; of windows of a text, that of the texts."""
        if self.indices is not None:
            return getattr(self.data, "num_independent", len(self.data))
        if isinstance(self.data, DataLoader) and not self.data.drop_last and _sized(self.data.dataset):
            return len(self.data.dataset)  # type: ignore[arg-type]
        self._reseed()
        total, most = 0, max(MOST_COUNTED, 100 * (self.max_examples or 0))
        ends = self.max_examples is None or _sized(self.data)  # or a measure of all of it would never end either
        for batch in self.data:
            total += count_examples(batch)
            if not ends and total > most:
                raise ValueError(
                    f"The data is a stream of more than {most:,} examples, which does not tell how many there are, and "
                    "may never end: eta='n' needs their number. Set num_training_examples, or eta to a number, in the "
                    "ScoreConfig."
                )
        return total

    def examples_in(self, index: int, batch: Any) -> int:
        """Number of examples in a batch of a pass: of pairs that a collator makes two rows of, the pairs."""
        rows = count_examples(batch)
        if self.indices is not None:
            return _pairs(batch, rows, len(self.indices[index]))
        loader = self.data if isinstance(self.data, DataLoader) and self.max_examples is None else None
        if loader is None or not loader.batch_size or not _sized(loader.dataset):
            return rows
        given = min(loader.batch_size, len(loader.dataset) - index * loader.batch_size)  # type: ignore[arg-type]
        return _pairs(batch, rows, given)

    def count(self) -> int | None:
        """Number of batches that a pass of this process goes over, None where the data does not tell beforehand."""
        total = self._total()
        return None if total is None else len(range(self.processes.rank, total, self.processes.size))

    def _total(self) -> int | None:
        # number of batches of a pass of all processes
        if self.indices is None and (self.max_examples is not None or not _sized(self.data)):
            return None
        return len(self.data if self.indices is None else self.indices)

    def compare_passes(self) -> tuple[str, str | None]:
        """Look at the first batches in two passes; keep all of them in memory where they differ.

        Returns:
            A sentence on what was found, and one to note where the data had to be kept.

        Raises:
            ValueError: they differ, and cannot be kept: a stream that can be gone through once, or too much data.
        """
        if self.form is _Form.BATCHES and isinstance(self.data, (list, tuple)):
            return "the batches are a list, the same in every pass", None
        first, second = ([batch_checksum(batch) for _, batch in self.head(COMPARED)] for _ in range(2))
        if first == second:
            return f"the first {len(first)} batches have the same checksums in two passes", None
        unsteady = self.data.dataset if isinstance(self.data, DataLoader) else self.data
        if self.form is _Form.BATCHES or isinstance(unsteady, IterableDataset):
            raise ValueError(
                f"The data ({type(unsteady).__name__}) gave other batches in a second pass: it can be gone through "
                "only once, or draws random numbers of its own, and several passes are needed. Give it an __iter__ "
                "that starts anew and draws from a generator that it seeds there, or pass a list of batches."
            )
        if self.processes.size > 1:
            raise ValueError(
                "The data differ from one pass to the next, so the processes would measure different data: the dataset "
                "or its collator has a random generator of its own. Seed it by the example's number, draw from "
                "torch's, NumPy's or Python's global one, which are seeded here, or pass a list of batches."
            )
        return self._keep()

    def _keep(self) -> tuple[str, str | None]:
        size, kept = 0, []
        for index, batch in self.every():
            size += sum(tensor.nbytes for tensor in batch_tensors(batch))
            if size > MOST_KEPT:
                raise ValueError(
                    "The data differ from one pass to the next (a random generator inside the dataset or its collator, "
                    f"or workers that go on with theirs), and are more than the {MOST_KEPT >> 20:,} MB that would be "
                    "kept in memory to measure one pass. Set max_examples, draw from torch's, NumPy's or Python's "
                    "global generator, which are seeded here, or turn the randomness off."
                )
            kept.append((index, batch))
        self._kept = kept
        note = (
            "The data differ from one pass to the next (a random generator inside the dataset or its collator, or "
            f"workers that go on with theirs): one pass was drawn, and kept in memory ({size / 2**20:.1f} MB). Another "
            "run measures another draw."
        )
        return "the first batches differ in two passes, so one pass was kept in memory", note

    def parts(self, index: int) -> tuple[Any, list[Any]] | None:
        """A batch, and two parts of its examples as batches of their own; None where examples have no numbers.

        None also where the same examples make another batch each time, as under random masking.
        """
        rows = [] if self.indices is None or self._kept is not None else self.indices[index]
        if len(rows) < 2:
            return None
        fetch = getattr(self.data, "__getitems__", None)
        examples = fetch(rows) if fetch is not None else [self.data[row] for row in rows]
        whole, again = self.collate(list(examples)), self.collate(list(examples))
        if batch_checksum(whole) != batch_checksum(again):
            return None
        half = len(rows) // 2
        return whole, [self.collate(list(examples[:half])), self.collate(list(examples[half:]))]

    def recut(self, size: int) -> bool:
        """Take batches of another size, of shuffled examples as a training does; whether that is possible."""
        if self.form is not _Form.ROWS or self._kept is not None or self.indices is None:
            return False
        rows = [row for rows in self.indices for row in rows]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed)).tolist()
        self.batch_size = count(size, "batch_size")
        self.indices = [[rows[i] for i in order[k : k + size]] for k in range(0, len(rows), size)]
        return True

    def _choose(self, size: int) -> list[list[int]]:
        chosen: Sequence[int] = range(size)
        if self.max_examples is not None and self.max_examples < size:
            generator = torch.Generator().manual_seed(self.seed)
            chosen = torch.randperm(size, generator=generator)[: self.max_examples].sort().values.tolist()
        return [list(chosen[i : i + self.batch_size]) for i in range(0, len(chosen), self.batch_size)]

    def every(self, due: Callable[[int], bool] = lambda index: True) -> Iterator[tuple[int, Any]]:
        """All batches whose index is ``due``, with their indices."""
        if self._kept is not None:
            yield from ((index, batch) for index, batch in self._kept if due(index))
            return
        if self.indices is not None:
            for index, rows in enumerate(self.indices):
                if not due(index):
                    continue
                seed_everything(self.seed + index)  # a batch is the same whichever process draws it
                fetch = getattr(self.data, "__getitems__", None)
                examples = fetch(rows) if fetch is not None else [self.data[row] for row in rows]
                yield index, self.collate(examples)
            return
        left, number = self.max_examples, 0
        self._reseed()
        for index, batch in enumerate(self.data):
            if left is not None:
                size = count_examples(batch)
                if size > left:
                    batch = truncate(batch, left, size)
                left -= min(size, left)
            number = index + 1
            if due(index):
                yield index, batch
            if left == 0:
                break
        self._check_number(number)

    def _check_number(self, number: int) -> None:
        """Refuse a pass of another length than the one before."""
        if self._number not in (None, number):
            raise ValueError(
                f"The data had {self._number} batches in one pass and {number} in another: every pass must give the "
                "same. A stream that can be gone through only once is used up: pass a list of batches, or a dataset "
                "whose __iter__ starts anew."
            )
        self._number = number

    def _reseed(self) -> None:
        seed_everything(self.seed)
        for generator, state in self._generator_states:
            generator.set_state(state)

    def close(self) -> None:
        """Give back the state of the data's own random generators."""
        for generator, state in self._generator_states:
            generator.set_state(state)


def read_twice(data: Any, collate_fn: Callable[[list[Any]], Any] | None, model: nn.Module) -> None:
    """Read the beginning of some data twice.

    Raises:
        ValueError: the second reading gave something else, as data do that can be gone through only once.
    """
    Batches(data, model=model, collate_fn=collate_fn, batch_size=1).compare_passes()


def length(data: Any) -> int | None:
    """Number of examples in the data given, of batches where it is a list of these, None for a stream."""
    data = data.dataset if isinstance(data, DataLoader) else data
    return len(data) if _sized(data) else None


class _Form(Enum):
    """How data is gone over."""

    ROWS = "a dataset whose rows have numbers"
    STREAM = "a dataset that is read from its beginning"
    LOADER = "a DataLoader"
    BATCHES = "an iterable of batches"

    @classmethod
    def of(cls, data: Any, *, of_examples: bool = False) -> _Form:
        """The form of some data; a list is one of batches, or ``of_examples``, as a Trainer takes it.

        Raises:
            TypeError: it is none of these.
            ValueError: it can be gone over only once.
        """
        if isinstance(data, (list, tuple)):
            return cls.ROWS if of_examples else cls.BATCHES
        if isinstance(data, DataLoader):
            return cls.LOADER
        if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, (Iterable, Dataset)):
            splits = hasattr(data, "column_names")
            hint = "pick one of its splits" if splits else "wrap a single batch in a list: [batch]"
            remedy = f" If it is a batch or several splits, {hint}." if isinstance(data, Mapping) else " Load it first."
            raise TypeError(
                f"data must be a DataLoader, a dataset, or an iterable of batches; got {type(data).__name__}."
                f"{remedy if isinstance(data, (str, bytes, Mapping)) else ''}"
            )
        if isinstance(data, (Dataset, IterableDataset)) or hasattr(data, "column_names"):
            numbered = hasattr(data, "__getitem__") and _sized(data) and not isinstance(data, IterableDataset)
            if numbered or isinstance(data, IterableDataset) or hasattr(data, "column_names"):
                return cls.ROWS if numbered else cls.STREAM
        if iter(data) is data:
            raise ValueError(
                f"data is an iterator ({type(data).__name__}), which is exhausted after one pass, and several passes "
                "are needed. Pass a list of batches, a DataLoader or a dataset."
            )
        return cls.BATCHES


def _pairs(batch: Any, rows: int, given: int) -> int:
    """Pairs, where a collator makes two rows of each of the examples given; else the rows, or documents in one."""
    is_pairs = given > 0 and rows == 2 * given and documents(batch) is None
    return given if is_pairs else rows


def _sized(data: Any) -> bool:
    try:
        len(data)
    except TypeError:
        return False
    return True


def _generators(data: Any) -> list[torch.Generator]:
    owners = (data, getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    unique = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(unique.values())
