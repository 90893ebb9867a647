"""Texts with labels as the inputs of models: a class, tags, an answer in a text, one of several answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_pacgen.command_line.inputs import columns as c
from hf_pacgen.command_line.inputs.data import check_complete
from hf_pacgen.command_line.inputs.examples import (
    LOOKED_AT,
    Examples,
    Material,
    Parts,
    Rows,
    StreamedExamples,
    cut_note,
    encoded_rows,
    unbatched,
)
from hf_pacgen.data.losses import IGNORED
from hf_pacgen.errors import InputError

WINDOW = 384  # tokens of a question with a part of its context, as in the scripts of transformers
STRIDE = 128  # tokens that two windows of a long context share, as in the scripts of transformers
COUNTED_AT_ONCE = 256  # contexts whose windows are counted


def classified(material: Material) -> Examples | StreamedExamples:
    """Tokenized texts, or pairs of them, with the encoded label."""
    columns, tokenizer, labels = material.columns, material.processor, material.labels
    limit = material.token_limit()
    material.knows_padding()

    def encode(rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        texts = [c.cells(rows, name) for name in (columns.text, columns.text_pair) if name is not None]
        examples = encoded_rows(tokenizer(*texts, truncation=True, max_length=limit), len(numbers))
        raw = unbatched({name: rows[name] for name in columns.outputs})
        for example, row in zip(examples, raw, strict=True):
            value = list(row.values()) if columns.labels else row[str(columns.label)]
            example["labels"] = labels(value)  # type: ignore[misc]
        return examples

    head = _head(material)
    first = [c.cells(head, name) for name in (columns.text, columns.text_pair) if name is not None]
    return material.examples(encode, notes=cut_note([len(ids) for ids in tokenizer(*first)["input_ids"]], limit))


def _head(material: Material) -> Rows:
    """The first rows, by which it is told whether texts are cut; all of what is read of them has a value."""
    for name in material.columns.used:
        check_complete(material.table, name, "a value")
    found: Rows = material.table.select_columns(list(material.columns.used))[:LOOKED_AT]
    return found


def tagged(material: Material) -> Examples | StreamedExamples:
    """Words as tokens, of which the first of each word has its tag, as in the scripts of transformers."""
    words, tags = str(material.columns.text), str(material.columns.label)
    tokenizer, labels, limit = material.processor, material.labels, material.token_limit()
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"The tokenizer {type(tokenizer).__name__} does not tell which token belongs to which word: expected a "
            "fast one. Save it with its tokenizer.json in the model's folder."
        )

    def encode(rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        encoded = tokenizer(rows[words], is_split_into_words=True, truncation=True, max_length=limit)
        examples = encoded_rows(encoded, len(numbers))
        for i, (example, number) in enumerate(zip(examples, numbers, strict=True)):
            if len(rows[words][i]) != len(rows[tags][i]):
                raise InputError(
                    f"Row {number} (counted from 0) has {len(rows[words][i])} words in {words!r} and "
                    f"{len(rows[tags][i])} tags in {tags!r}: expected one for each word. Repair or remove it."
                )
            wanted, previous = labels(rows[tags][i]), None  # type: ignore[misc]
            example["labels"] = []
            for word in encoded.word_ids(i):
                example["labels"].append(IGNORED if word is None or word == previous else wanted[word])
                previous = word
        return examples

    lengths = [len(ids) for ids in tokenizer(_head(material)[words], is_split_into_words=True)["input_ids"]]
    said = "Of each word, the first token has the label."
    return material.examples(encode, notes=(said, *cut_note(lengths, limit)))


def answered(material: Material) -> Examples | Parts | StreamedExamples:
    """Questions with the first and the last token of the answer in their context, which is cut into windows."""
    columns, tokenizer = material.columns, material.processor
    question, context, answers = str(columns.text), str(columns.text_pair), str(columns.label)
    limit = material.token_limit() if material.args.max_length else min(WINDOW, material.token_limit())
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"The tokenizer {type(tokenizer).__name__} does not tell where in the text a token stands: expected a "
            "fast one. Save it with its tokenizer.json in the model's folder."
        )
    # the places of padding compete with those of the answer, so all examples have as much as in training
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    padding = "max_length" if tokenizer.pad_token is not None else False
    right = tokenizer.padding_side == "right"  # the question comes first, or XLNet's comes last

    def windows(rows: Rows) -> Any:
        first, second = [text.lstrip() for text in rows[question]], rows[context]
        longest = max(len(ids) for ids in tokenizer(first, add_special_tokens=False)["input_ids"])
        if longest + 8 > limit:
            raise InputError(
                f"A question of {longest} tokens leaves no room for its context in {limit}: set a larger --max-length, "
                "or remove it."
            )
        return tokenizer(
            *((first, second) if right else (second, first)),
            truncation="only_second" if right else "only_first",
            max_length=limit,
            padding=padding,
            stride=min(STRIDE, max(0, (limit - longest - 8) // 2)),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def encode(rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        found = windows(rows)
        made: list[dict[str, Any]] = [{"parts": []} for _ in numbers]
        for i, row in enumerate(found["overflow_to_sample_mapping"]):
            kept = {k: v[i] for k, v in found.items() if k not in ("overflow_to_sample_mapping", "offset_mapping")}
            spans = [
                span if of == int(right) else None
                for span, of in zip(found["offset_mapping"][i], found.sequence_ids(i), strict=True)
            ]
            start, end = _span(rows[answers][row], rows[context][row], spans, numbers[row])
            made[row]["parts"].append({**kept, "start_positions": start, "end_positions": end})
        return made

    rows = material.examples(encode)
    if isinstance(rows, StreamedExamples):

        def flat(columns: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
            return [part for row in encode(columns, numbers) for part in row["parts"]]

        rows.encode = flat
        rows.notes += (
            "Of a stream η counts windows of contexts, unless num_training_examples says how many questions.",
        )
        return rows
    where: list[tuple[int, int]] = []
    texts = material.table.select_columns(list(dict.fromkeys((question, context))))
    for first in range(0, len(texts), COUNTED_AT_ONCE):
        counted = windows(texts[first : first + COUNTED_AT_ONCE])["overflow_to_sample_mapping"]
        where += [(first + row, counted[:i].count(row)) for i, row in enumerate(counted)]
    if len(where) > len(texts):
        cut = f"{len(where):,} windows of at most {limit} tokens were made of the contexts of {len(texts):,} questions"
        rows.notes += (
            f"{cut}: the loss is their mean, as in training, and η counts questions. Where the answer is not in a "
            "window, its label is the first token.",
        )
    return Parts(rows, where, lambda row, part: dict(row["parts"][part]))


def _span(answers: Any, context: str, spans: Sequence[tuple[int, int] | None], number: int) -> tuple[int, int]:
    """The first and the last token of an answer; the first token of all, where the window has no answer."""
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text") or [], answers.get("answer_start") or []
        if isinstance(texts, str):
            texts, starts = [texts], [starts if isinstance(starts, int) else 0]
    else:
        texts, starts = [one["text"] for one in answers or []], [one["answer_start"] for one in answers or []]
    if not texts:
        return 0, 0
    first, last = starts[0], starts[0] + len(texts[0])
    if context[first:last] != texts[0]:
        raise InputError(
            f"In row {number} (counted from 0) the answer {texts[0]!r} does not stand at character {first} of its "
            f"context, where {context[first:last]!r} is: expected answer_start to count characters from 0. Repair it."
        )
    inside = [i for i, span in enumerate(spans) if span is not None and span[1] > span[0]]
    whole = bool(inside) and spans[inside[0]][0] <= first and spans[inside[-1]][1] >= last  # type: ignore[index]
    touched = [i for i in inside if spans[i][0] < last and spans[i][1] > first]  # type: ignore[index]
    return (touched[0], touched[-1]) if whole and touched else (0, 0)


def chosen_among(material: Material) -> Examples | StreamedExamples:
    """A text with each of its answers as a row of tokens, and the number of the right one."""
    columns, tokenizer, limit = material.columns, material.processor, material.token_limit()
    text, pair, label = str(columns.text), columns.text_pair, str(columns.label)
    check_complete(material.table, label, "a label")
    count: list[int] = []  # of the answers of the first row: models take as many in each

    def options(row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        if len(columns.choices) > 1:
            return [row[name] for name in columns.choices], []
        found = row[columns.choices[0]]
        if isinstance(found, Mapping):
            return list(found["text"]), [str(name) for name in found.get("label") or ()]
        return [one["text"] if isinstance(one, Mapping) else one for one in found], []

    first_row = {name: material.table[0][name] for name in columns.used}
    start, notes = _first_number(material, label, *options(first_row))

    def encode(rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        examples = []
        for row, number in zip(unbatched(rows), numbers, strict=True):
            answers, names = options(row)
            if not count:
                count.append(len(options(first_row)[0]))
            if len(answers) != count[0]:
                raise InputError(
                    f"Row {number} (counted from 0) has {len(answers)} answers to choose from and row 0 has "
                    f"{count[0]}: expected as many in each, since a model compares all of them. Remove those rows."
                )
            lead, first = c.cell(row, pair) if pair else "", c.cell(row, text)
            # the second text begins every answer, as in SWAG
            ends = [f"{lead} {answer}".strip() for answer in answers]
            example = dict(tokenizer([first] * len(ends), ends, truncation=True, max_length=limit))
            example["labels"] = _number_of(row[label], answers, names, number, label, start)
            examples.append(example)
        return examples

    return material.examples(encode, notes=notes)


def _first_number(material: Material, label: str, answers: list[str], names: list[str]) -> tuple[int, tuple[str, ...]]:
    """From what number the answers are counted: 1 where their count is a label and 0 is none; and what was assumed."""
    raw = {str(value) for value in material.table.unique(label)}
    if names or not all(value.isdecimal() for value in raw) or raw & set(answers):
        return 0, ()
    numbers = set(map(int, raw))
    # the first and the last are there, and none before or behind them
    if (min(numbers), max(numbers)) != (1, len(answers)):
        return 0, ()
    return 1, (f"The labels in {label!r} are numbers from 1 to {len(answers)}, so the answers were counted from 1.",)


def _number_of(raw: Any, answers: list[str], names: list[str], number: int, column: str, start: int) -> int:
    """Which answer is right: by its number, its name, its letter, or its text."""
    found = None
    if str(raw) in names:
        found = names.index(str(raw))
    elif isinstance(raw, int) or (isinstance(raw, str) and raw.isdigit()):
        found = int(raw) - start
    elif raw in answers:
        found = answers.index(raw)
    elif isinstance(raw, str) and len(raw) == 1 and "A" <= raw.upper() <= "Z":
        found = ord(raw.upper()) - ord("A")
    if found is None or not 0 <= found < len(answers):
        raise InputError(
            f"Row {number} (counted from 0) has {raw!r} in the column {column!r}: expected the number (from 0), the "
            f"letter, or the text of one of its {len(answers)} answers. Repair it, or correct --label-column."
        )
    return found
