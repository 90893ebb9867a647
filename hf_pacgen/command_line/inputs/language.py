"""Texts as the inputs of language models: each next token, masked tokens, or another text is to be predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy

from hf_pacgen.command_line.inputs import columns as c
from hf_pacgen.command_line.inputs.chat import Chat, Messages, extras_of, messages_of
from hf_pacgen.command_line.inputs.data import check_complete
from hf_pacgen.command_line.inputs.examples import (
    LOOKED_AT,
    Examples,
    Material,
    Rows,
    StreamedExamples,
    cut_note,
    encoded_rows,
    unbatched,
)
from hf_pacgen.command_line.inputs.formats import ALPACA, filled
from hf_pacgen.data.losses import IGNORED
from hf_pacgen.errors import InputError

MASKED, REPLACED = 0.8, 0.5  # of the chosen tokens are masked; of the rest become a random one (Devlin et al. 2019)
SEED = 1809  # of the masks, which are those of the row and no other's
Tokens = tuple[list[int], list[bool] | None]
"""The tokens of an example, and which of them count; None: all."""


def continued(material: Material) -> Examples | StreamedExamples:
    """Texts whose every next token is a label, or only those of a completion, or of the assistant in a chat."""
    columns, args = material.columns, material.args
    material.knows_padding()
    is_chat = columns.template is None and c.is_chat(c.feature_of(material.table, str(columns.text)))
    if args.assistant_only and not is_chat:
        raise InputError(
            f"--assistant-only is for conversations, and the data has texts ({columns.title}). Leave it out: the loss "
            "of a completion is on the completion alone."
        )
    if is_chat:
        return _chats(material)
    if columns.template is not None or columns.label is not None:
        return _completions(material)
    return _plain(material)


def _plain(material: Material) -> Examples | StreamedExamples:
    """Whole texts, each of whose tokens but the first is predicted."""
    text, tokenizer, limit = str(material.columns.text), material.processor, material.token_limit()
    check_complete(material.table, text.partition(".")[0], "a text")
    # a text without a token has no loss, and would be an example in the count without being one
    material, notes = material.without_empty(text)
    ending = _ending(material, add=False)

    def encode(rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        texts = [_ended(value, ending) for value in c.cells(rows, text) if value.strip()]
        if not texts:
            return []
        examples = encoded_rows(tokenizer(texts, truncation=True, max_length=limit), len(texts))
        for example in examples:
            example["labels"] = list(example["input_ids"])
        return examples

    notes += _unended(material, ending)
    return material.examples(encode, notes=(*notes, *_lengths(material, text, limit)))


def _unended(material: Material, ending: str | None) -> tuple[str, ...]:
    """A sentence where plain texts have no end that is to be predicted: trainers differ in this."""
    tokenizer = material.processor
    made = tokenizer("a")["input_ids"]
    if ending is not None or material.args.eos == "none" or tokenizer.eos_token_id in (None, made[-1]):
        return ()
    return (
        f"No {tokenizer.eos_token} was added to the texts, as most scripts train; if yours did, as TRL's SFTTrainer "
        "does, give --eos add.",
    )


def _completions(material: Material) -> Examples | StreamedExamples:
    """Prompts with completions: the loss is on the completion, which ends with the end-of-sequence token."""
    columns, tokenizer, ending = material.columns, material.processor, _ending(material, add=True)

    def parts(row: Mapping[str, Any]) -> tuple[str, str]:
        prompt, completion = filled(columns, row) if columns.template is not None else _pair(columns, row)
        return prompt, _ended(completion, ending)

    def tokens(rows: Rows, numbers: Sequence[int]) -> list[Tokens]:
        both = [parts(row) for row in unbatched(rows)]
        wholes = tokenizer([prompt + completion for prompt, completion in both])["input_ids"]
        if columns.label is None or not material.args.completion_only:  # a template of one column is a text
            return [(ids, None) for ids in wholes]
        prompts = tokenizer([prompt for prompt, _ in both])["input_ids"]
        return [_after(ids, head) for ids, head in zip(wholes, prompts, strict=True)]

    notes: tuple[str, ...] = ()
    if columns.template is ALPACA:
        notes = (
            "Rows of instruction, input and output were written by the template of Alpaca. If the model was trained "
            "with another, give it with --template.",
        )
    # an instruction may have no input
    return _counted(material, tokens, notes, optional=_optional(columns))


def _optional(columns: c.Columns) -> tuple[str, ...]:
    """Columns of a template that may be empty: all but what is to be predicted."""
    return tuple(name for name in columns.fields if name != columns.label)


def _pair(columns: c.Columns, row: Mapping[str, Any]) -> tuple[str, str]:
    return c.cell(row, str(columns.text)), c.cell(row, str(columns.label))


def _chats(material: Material) -> Examples | StreamedExamples:
    """Conversations, as one text by the chat template, or as a prompt with its completion."""
    columns, chat = material.columns, Chat(material.processor)
    alone, text = material.args.assistant_only, str(columns.text)

    def read(row: Mapping[str, Any], number: int) -> Tokens:
        said, extra = messages_of(c.cell(row, text), number), extras_of(row)
        ends: Messages = messages_of(c.cell(row, columns.label), number) if columns.label is not None else []
        ids, mask = chat.marked(said + ends, number, extra) if alone else (chat.ids(said + ends, extra=extra), None)
        if columns.label is None or not material.args.completion_only:
            return ids, mask
        _, after = _after(ids, chat.ids(said, prompt=True, extra=extra))
        return ids, [a and b for a, b in zip(after, mask, strict=True)] if mask is not None else after

    def tokens(rows: Rows, numbers: Sequence[int]) -> list[Tokens]:
        return [read(row, number) for row, number in zip(unbatched(rows), numbers, strict=True)]

    notes: tuple[str, ...] = ()
    if alone and not chat.marks:
        notes = (
            "The chat template does not mark what the assistant says ({% generation %}), so that each of its turns was "
            "found as what it adds to the text before it, its end mark included.",
        )
    tools = ("tools",) if "tools" in material.table.column_names else ()
    return _counted(material, tokens, notes, optional=tools, more=tools)


def _counted(
    material: Material,
    tokens: Callable[[Rows, Sequence[int]], list[Tokens]],
    notes: tuple[str, ...],
    *,
    optional: Sequence[str] = (),
    more: Sequence[str] = (),
) -> Examples | StreamedExamples:
    """Examples of tokens, some of which count; and what the first of them say of the limit."""
    limit = material.token_limit()

    def encode(rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        return [_example(one, limit) for one in tokens(rows, numbers)]

    for name in (*material.columns.inputs, *material.columns.outputs):
        if name not in optional:
            check_complete(material.table, name.partition(".")[0], "a value")
    head = material.table.select_columns(list(dict.fromkeys((*material.columns.used, *more))))[:LOOKED_AT]
    first = tokens(head, range(min(LOOKED_AT, len(material.table))))
    empty = sum(mask is not None and not any(mask[1:limit]) for _, mask in first)
    if empty == len(first):
        raise InputError(
            f"None of the first {empty} rows has a token to predict among its first {limit}: what comes before takes "
            "all of them, or there is none. Set a larger --max-length, or repair the data."
        )
    if empty:
        notes += (f"Of the first {len(first)} rows, {empty} have no token to predict among their first {limit}.",)
    notes += cut_note([len(ids) for ids, _ in first], limit, "rows")
    return material.examples(encode, notes=notes, optional=optional, more=more)


def _after(ids: list[int], prompt: list[int]) -> tuple[list[int], list[bool]]:
    """Which tokens stand after those that a text has in common with its beginning, tokenized alone."""
    common = 0
    for one, other in zip(ids, prompt, strict=False):
        if one != other:
            break
        common += 1
    return ids, [False] * common + [True] * (len(ids) - common)


def _example(tokens: Tokens, limit: int) -> dict[str, Any]:
    ids, mask = tokens[0][:limit], tokens[1]
    labels = list(ids) if mask is None else [t if m else IGNORED for t, m in zip(ids, mask, strict=False)]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _ending(material: Material, *, add: bool) -> str | None:
    wanted = {"auto": add, "add": True, "none": False}[material.args.eos]
    found: str | None = material.processor.eos_token
    if found is None and material.args.eos == "add":
        raise InputError("--eos add: the model's tokenizer has no end-of-sequence token. Leave it out.")
    return found if wanted else None


def _ended(text: str, ending: str | None) -> str:
    return text if ending is None or text.endswith(ending) else text + ending


def _lengths(material: Material, column: str, limit: int) -> tuple[str, ...]:
    first = c.cells(material.table[:LOOKED_AT], column)
    return cut_note([len(ids) for ids in material.processor([str(text) for text in first])["input_ids"]], limit)


def masked(material: Material) -> Examples | StreamedExamples:
    """Texts some of whose tokens are hidden and to be predicted; a row hides the same ones whenever it is read."""
    text, tokenizer, limit = str(material.columns.text), material.processor, material.token_limit()
    if tokenizer.mask_token_id is None:
        raise InputError(
            "The model's tokenizer has no mask token, which hides what a masked language model has to predict. Save "
            "the one it was trained with in the model's folder."
        )
    check_complete(material.table, text.partition(".")[0], "a text")
    material, notes = material.without_empty(text)
    share = material.args.mask_share

    def encode(rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        kept = [(number, value) for number, value in zip(numbers, c.cells(rows, text), strict=True) if value.strip()]
        if not kept:
            return []
        encoded = tokenizer(
            [value for _, value in kept], truncation=True, max_length=limit, return_special_tokens_mask=True
        )
        examples = encoded_rows(encoded, len(kept))
        for example, (number, _) in zip(examples, kept, strict=True):
            special = numpy.array(example.pop("special_tokens_mask"), dtype=bool)
            ids, labels = hidden(example["input_ids"], special, tokenizer, share, number)
            example["input_ids"], example["labels"] = ids, labels
        return examples

    head = material.table.select_columns([text.partition(".")[0]])[:LOOKED_AT]
    shown = encode(head, range(len(next(iter(head.values())))))
    if shown and not any(label != IGNORED for example in shown for label in example["labels"]):
        raise InputError(
            f"No token of the first {len(shown)} texts is hidden, so there is none to predict: they are too short for "
            f"{share:.0%}. Give a larger --mask-share, or longer texts."
        )
    drawn = f"{share:.0%} of each text's tokens are to be predicted, drawn by its row: the same in every pass."
    return material.examples(encode, notes=(*notes, drawn, *_lengths(material, text, limit)))


def hidden(ids: list[int], special: Any, tokenizer: Any, share: float, row: int) -> tuple[list[int], list[int]]:
    """Tokens with some of them hidden, and these as labels, as ``DataCollatorForLanguageModeling`` does it."""
    generator = numpy.random.default_rng((SEED, row))
    tokens, place = numpy.array(ids), generator.random((3, len(ids)))
    chosen = (place[0] < share) & ~special
    labels = numpy.where(chosen, tokens, IGNORED)
    mask = chosen & (place[1] < MASKED)
    other = chosen & ~mask & (place[2] < REPLACED)
    words = generator.integers(0, len(tokenizer), len(ids))
    tokens = numpy.where(mask, tokenizer.mask_token_id, numpy.where(other, words, tokens))
    return tokens.tolist(), labels.tolist()


def translated(material: Material) -> Examples | StreamedExamples:
    """Source texts, and their targets as labels."""
    columns, tokenizer, limit = material.columns, material.processor, material.token_limit()
    target, prefix = str(columns.label), material.args.source_prefix or ""

    def pairs(rows: Rows) -> list[tuple[str, str]]:
        if columns.template is not None:
            both = [filled(columns, row) for row in unbatched(rows)]
        else:
            both = list(zip(c.cells(rows, str(columns.text)), c.cells(rows, target), strict=True))
        return [(prefix + source.rstrip() if columns.template else prefix + source, end) for source, end in both]

    def encode(rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        texts, ends = zip(*pairs(rows), strict=True)
        examples = encoded_rows(tokenizer(list(texts), truncation=True, max_length=limit), len(numbers))
        targets = tokenizer(text_target=list(ends), truncation=True, max_length=limit)["input_ids"]
        for example, labels, number in zip(examples, targets, numbers, strict=True):
            if not labels:
                raise InputError(
                    f"Row {number} (counted from 0) has a target without a token in {target!r}: there is nothing to "
                    "predict. Remove it."
                )
            example["labels"] = labels
        return examples

    for name in columns.used:
        if name not in _optional(columns):
            check_complete(material.table, name, "a value")
    first = pairs(material.table.select_columns(list(columns.used))[:LOOKED_AT])
    lengths = [len(ids) for ids in tokenizer([source for source, _ in first])["input_ids"]]
    return material.examples(encode, notes=cut_note(lengths, limit), optional=_optional(columns))
