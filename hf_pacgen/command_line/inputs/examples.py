"""Rows as the model's inputs, made when they are asked for; what every task's recipe starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from torch.utils.data import Dataset, IterableDataset

from hf_pacgen.command_line.inputs.columns import Columns, cells
from hf_pacgen.command_line.inputs.data import DataArguments, check_complete
from hf_pacgen.command_line.inputs.labels import Labels
from hf_pacgen.errors import InputError, refusing

DEFAULT_MAX_LENGTH = 512  # what most encoders take; a product on longer texts needs much memory
UNLIMITED = 10**6  # tokenizers without a limit of their own say 10^30
LOOKED_AT = 100  # rows whose length says whether texts are cut
OFFSET = tuple("roberta xlm-roberta xlm-roberta-xl camembert roberta-prelayernorm longformer xmod".split())
OFFSET += tuple("data2vec-text ibert mpnet luke mluke layoutlmv3 lilt markuplm esm".split())
"""Types of models whose positions are counted from behind that of padding, so that some of the table are no token's."""
READ_AT_ONCE = 32  # rows of a stream
SHOWN = 80  # characters of the line that shows an example
Rows = dict[str, list[Any]]
Encode = Callable[[Rows, Sequence[int]], list[dict[str, Any]]]
"""Model inputs of some rows, and their numbers; as many as there are rows, unless rows of no use are left out."""
Collate = Callable[[list[Any]], Any]


class Examples(Dataset):
    """A map-style dataset of model inputs; only the rows that are scored are tokenized or decoded.

    Attributes:
        notes: what was done to the data that the user should know, in sentences.
        collate_examples: makes a batch of examples; None where columns are stacked and padded as for any dataset.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        encode: Encode,
        notes: tuple[str, ...] = (),
        *,
        used: Sequence[str] | None = None,
        collate: Collate | None = None,
    ) -> None:
        self.table, self.encode, self.notes = table, encode, notes
        self._read = table if used is None else table.select_columns(list(dict.fromkeys(used)))
        self.collate_examples = collate

    def __len__(self) -> int:
        return len(self.table)

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        failed = f"Among the rows {rows[0]} to {rows[-1]} is one that cannot be read"
        with refusing(failed, "Repair or remove it."):  # an image that cannot be decoded
            columns = self._read[rows]
        return self.encode(columns, rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if not 0 <= row < len(self):
            raise IndexError(row)  # by which a loop over the examples ends
        return self.__getitems__([row])[0]  # torch's loaders ask for a batch at once


class Parts(Dataset):
    """Examples of which a row may have several: the windows of a long text.

    ``where`` says of every example its row, and which of the row's it is.
    """

    def __init__(self, rows: Examples, where: Sequence[tuple[int, int]], encode: Callable[..., Any]) -> None:
        self.rows, self.where, self.encode = rows, where, encode
        self.num_independent = len(rows)  # parts of one row are no examples of their own: η counts rows
        self.notes, self.collate_examples = rows.notes, rows.collate_examples

    def __len__(self) -> int:
        return len(self.where)

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        places = [self.where[number] for number in numbers]
        different = list(dict.fromkeys(row for row, _ in places))
        made = dict(zip(different, self.rows.__getitems__(different), strict=True))
        return [self.encode(made[row], part) for row, part in places]

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self.__getitems__([number])[0]


class StreamedExamples(IterableDataset):
    """The same of data that is read from its beginning and never held as a whole."""

    def __init__(
        self,
        stream: datasets.IterableDataset,
        encode: Encode,
        notes: tuple[str, ...] = (),
        *,
        used: Sequence[str],
        collate: Collate | None = None,
    ) -> None:
        self.stream, self.encode, self.notes, self.used = stream, encode, notes, tuple(dict.fromkeys(used))
        self.collate_examples = collate

    def __iter__(self) -> Iterator[dict[str, Any]]:
        first = 0
        for columns in self.stream.iter(batch_size=READ_AT_ONCE):
            size = len(next(iter(columns.values())))
            for name in self.used:
                if any(cell is None for cell in columns[name]):
                    row = first + [cell is None for cell in columns[name]].index(True)
                    raise InputError(
                        f"The column {name!r} has no value in row {row} (counted from 0): expected one in each. "
                        "Remove those rows."
                    )
            yield from self.encode(columns, range(first, first + size))
            first += size


@dataclass(frozen=True, kw_only=True)
class Material:
    """What the examples of a task are made of.

    Attributes:
        table: the rows, or the first of a stream.
        columns: those in use.
        processor: of texts, images or sounds.
        config: of the model.
        labels: how raw labels become the model's; None where the task has no classes.
        args: what the user said of the data.
        stream: all rows, where they are not read into a table.
        length: most tokens of an example in the run that made the model; None where it is not known.
    """

    table: datasets.Dataset
    columns: Columns
    processor: Any
    config: Any
    labels: Labels | None = None
    args: DataArguments
    stream: datasets.IterableDataset | None = None
    length: int | None = None

    def examples(
        self,
        encode: Encode,
        *,
        notes: tuple[str, ...] = (),
        collate: Collate | None = None,
        optional: Sequence[str] = (),
        more: Sequence[str] = (),
    ) -> Examples | StreamedExamples:
        """The rows in use, and some ``more`` columns, as inputs; all cells but ``optional`` ones must have a value."""
        used = (*self.columns.used, *more)
        for name in used:
            if name not in optional:
                check_complete(self.table, name, "a value")
        notes = (*(self.labels.notes if self.labels is not None else ()), *notes)

        def checked(rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
            made = encode(rows, numbers)
            for example in made:
                for part in example.get("parts", [example]):
                    _check_tokens(part, self.config, numbers)
            return made

        if self.stream is not None:
            needed = [name for name in used if name not in optional]
            return StreamedExamples(self.stream, checked, notes, used=needed, collate=collate)
        return Examples(self.table, checked, notes, used=used, collate=collate)

    def cast(self, column: str, feature: Any) -> Material:
        """The same with one column read as another kind of thing: the names of files as images."""
        stream = None if self.stream is None else self.stream.cast_column(column, feature)
        return dataclasses.replace(self, table=self.table.cast_column(column, feature), stream=stream)

    def without_empty(self, column: str) -> tuple[Material, tuple[str, ...]]:
        """The same without rows of an empty text, and a note on how many they were."""
        if self.stream is not None:
            return self, ()  # left out where they are met
        texts = cells(self.table.select_columns([column.partition(".")[0]])[:], column)
        filled = [number for number, value in enumerate(texts) if value.strip()]
        if not filled:
            raise InputError(f"All texts in the column {column!r} are empty: there is no token to predict.")
        if not (empty := len(self.table) - len(filled)):
            return self, ()
        note = f"{empty:,} of {len(self.table):,} texts are empty and were left out."
        return dataclasses.replace(self, table=self.table.select(filled)), (note,)

    def token_limit(self) -> int:
        """The most tokens of an example."""
        tokenizer, asked = self.processor, self.args.max_length
        limits = [tokenizer.model_max_length, _positions(self.config)]
        known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < UNLIMITED]
        largest = min(known, default=UNLIMITED)
        if asked is None:
            return min(largest, self.length or DEFAULT_MAX_LENGTH)
        if asked > largest:  # the model would fail on an index in the middle of the work
            raise InputError(f"--max-length {asked} is more than the {largest} tokens that the model can take.")
        return asked

    def knows_padding(self) -> None:
        """Give the configuration a padding token, without which a classifier on GPT-2 finds no last token."""
        if getattr(self.config, "pad_token_id", None) is None:
            known = (n for n in (self.processor.pad_token_id, self.processor.eos_token_id) if n is not None)
            self.config.pad_token_id = next(known, 0)


def _positions(config: Any) -> int | None:
    """The most tokens for which a model has positions; None where it has no table of them."""
    found = getattr(config, "max_position_embeddings", None)
    if not isinstance(found, int) or config.model_type not in OFFSET:
        return found
    return found - 1 - (config.pad_token_id or 0)


def _check_tokens(example: Mapping[str, Any], config: Any, rows: Sequence[int]) -> None:
    """Raise for a token of which the model has no embedding: torch would say that an index is out of range."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size, ids = getattr(text, "vocab_size", None), example.get("input_ids")
    if not size or not ids:
        return
    largest = max((token for part in ids for token in (part if isinstance(part, list) else [part])), default=0)
    if largest >= size:
        raise InputError(
            f"Among the rows {rows[0]} to {rows[-1]} is one with the token {largest}, and the model knows {size:,} (0 "
            f"to {size - 1}): its tokenizer is another model's, or got tokens without resize_token_embeddings(). Save "
            "the tokenizer it was trained with in the model's folder."
        )


def cut_note(lengths: Sequence[int], limit: int, what: str = "texts") -> tuple[str, ...]:
    """A sentence where some of the first texts are longer than the limit."""
    longer = sum(length > limit for length in lengths)
    if not longer:
        return ()
    return (f"Of the first {len(lengths)} {what}, {longer} have more than {limit} tokens and are cut (--max-length).",)


def encoded_rows(encoded: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The columns of a tokenizer as one dictionary for each row."""
    return [{key: encoded[key][i] for key in encoded} for i in range(count)]


def unbatched(rows: Rows) -> list[dict[str, Any]]:
    """Columns as rows."""
    size = len(next(iter(rows.values())))
    return [{name: values[i] for name, values in rows.items()} for i in range(size)]


def shown_example(inputs: Sequence[Any], label: Any, most: int = SHOWN) -> str:
    """What was taken as input and as label, in one line of ``most`` characters.

    >>> shown_example(["good movie"], 1)
    "'good movie' -> 1"
    """
    right = _in_words(label)
    parts = [_in_words(value) for value in inputs]
    room = most - len(" -> ") - min(len(right), most // 2)
    left = _cut(", ".join(parts), room)
    return f"{left} -> {_cut(right, most - len(left) - 4)}"


def _in_words(value: Any) -> str:
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, Mapping) and "role" in value:
        return f"{value['role']}: {value.get('content')!r}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_in_words(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_in_words, value[:20])) + "]"
    if hasattr(value, "size") and hasattr(value, "mode"):  # a picture
        width, height = value.size
        return f"image of {width} x {height}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return str(value)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
