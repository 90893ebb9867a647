"""The forms in which language models are given their data: texts, prompts with completions, chats, templates."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any

import datasets

from hf_pacgen.command_line.inputs import columns as c
from hf_pacgen.command_line.inputs.columns import Columns, Role
from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.errors import InputError

# a column of such a name is the whole text, whatever stands beside it
WHOLE_NAMES = ("text", "content", "document", "sentence", "review", "tweet", "utterance", "code", "article", "story")
# one of these is a part of an example, and to score it alone is to leave out what the model was trained to say
PART_NAMES: tuple[str, ...] = (
    "prompt",
    "instruction",
    "question",
    "query",
    "input",
    "inputs",
    "source",
    "completion",
    "response",
)
PART_NAMES += ("output", "answer", "target", "chosen", "rejected")
CHAT_NAMES = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue")
COMPLETED = [("prompt", "completion"), ("prompt", "response"), ("prompt", "output"), ("prompt", "answer")]
COMPLETED += [("question", "answer"), ("question", "response"), ("query", "response")]
COMPLETED += [("input", "output"), ("inputs", "targets"), ("input", "target"), ("source", "target")]
ALPACA = (
    "Below is an instruction that describes a task{with_input}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
)
"""The template of Stanford Alpaca, by which rows of instruction, input and output are most often written."""
WHOLE = "Write the whole with --template, or name the prompt and its completion with --text-column and --label-column."
PAIRED = ", paired with an input that provides further context"

TEXT = Role("text", "text-column", lambda f: c.is_text(f) or c.is_chat(f), "text, or lists of messages", nested=True)
PART = Role("completion", "label-column", TEXT.fits, TEXT.holds, nested=True)


def language_columns(table: datasets.Dataset, args: DataArguments, config: Any = None) -> Columns:
    """The columns of a causal language model: a text, a chat, a prompt with its completion, or a template's."""
    if args.template is not None:
        return of_template(table, args)
    texts, chats = c.those(table, c.is_text), c.those(table, c.is_chat)
    if args.text_column is None and {"chosen", "rejected"} <= set(table.column_names):
        raise InputError(
            "The data are preferences (chosen, rejected), whose loss compares two answers, and that of causal-lm does "
            "not. Score them inside your DPOTrainer, by a PACGenCallback, or name what is one text with --text-column "
            "(and --label-column)."
        )
    if args.text_column is not None:
        text = TEXT.check(table, args.text_column)
        label = None if args.label_column is None else PART.check(table, args.label_column)
        return _alike(table, Columns(text=text, label=label))
    if args.label_column is not None:
        raise InputError(
            f"--label-column {args.label_column!r} names the completion, and nothing names the prompt: the data has "
            f"{c.listed(table)}. Give --text-column as well, or leave both out."
        )
    if found := c.well_known(chats, CHAT_NAMES):
        return Columns(text=found[0])
    for name in c.well_known(texts, CHAT_NAMES):
        if len(table) and str(table[0][name]).lstrip().startswith("[{"):  # of a CSV file, say
            raise InputError(
                f"The column {name!r} holds messages written as text ({str(table[0][name])[:40]!r}): expected lists of "
                "messages, as in a jsonl or parquet file. Read them with json.loads() and save the data so."
            )
    lower = {name.lower(): name for name in texts}
    prompt, completion = c.known_pair([*texts, *chats], COMPLETED[:1])
    if prompt is not None:  # whatever stands beside them, as for TRL
        return _alike(table, Columns(text=prompt, label=completion))
    said = next((lower[name] for name in ("output", "response") if name in lower), None)
    if "instruction" in lower and said is not None:
        extra = next((lower[name] for name in ("input", "context") if name in lower), None)
        fields = (lower["instruction"], *(() if extra is None else (extra,)))
        return c.check_whole(table, Columns(template=ALPACA, fields=fields, label=said), WHOLE)
    prompt, completion = c.known_pair([*texts, *chats], COMPLETED)
    if prompt is not None:
        return c.check_whole(table, _alike(table, Columns(text=prompt, label=completion)), WHOLE)
    return Columns(text=_whole_text(table, texts, chats))


def whole_text(table: datasets.Dataset, args: DataArguments, config: Any = None) -> Columns:
    """The column of a masked language model: a text."""
    role = Role("text", "text-column", c.is_text, "text", nested=True)
    if args.text_column is not None:
        return Columns(text=role.check(table, args.text_column))
    return Columns(text=_whole_text(table, c.those(table, c.is_text), []))


def _whole_text(table: datasets.Dataset, texts: list[str], chats: list[str]) -> str:
    if found := c.well_known(texts, WHOLE_NAMES):
        return found[0]
    free = [name for name in texts if name.lower() not in c.NO_LABELS]
    parts = [name for name in free if name.lower() in PART_NAMES]
    if parts and len(table.column_names) > 1:
        raise InputError(
            f"The column {parts[0]!r} may be a part of what the model was trained on, and nothing says what the whole "
            f"is: the data has {c.listed(table)}. Name the prompt and its completion with --text-column and "
            "--label-column, write the whole with --template, or take one column as the text with --text-column."
        )
    return TEXT.chosen(table, None, c.only(free) or c.only(chats))


def _alike(table: datasets.Dataset, columns: Columns) -> Columns:
    """Prompt and completion, if both are texts or both are chats."""
    if columns.label is None:
        return columns
    kinds = [c.is_chat(c.feature_of(table, str(name))) for name in (columns.text, columns.label)]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"The prompts in {columns.text!r} are {'messages' if kinds[0] else 'texts'} and the completions in "
            f"{columns.label!r} {'messages' if kinds[1] else 'texts'}: expected both to be of one kind. Convert one."
        )
    return columns


def of_template(table: datasets.Dataset, args: DataArguments) -> Columns:
    """The columns that ``--template`` names, and the one with which what is to be predicted begins."""
    template = str(args.template).replace("\\n", "\n").replace("\\t", "\t")  # as typed in a shell
    try:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise InputError(f"--template cannot be read: {error}. Write a brace that is text as {{{{ or }}}}.") from error
    if not fields or "" in fields:
        raise InputError(
            f"--template {args.template!r} names {'a column of no name' if fields else 'no column'}: expected names in "
            f"braces, such as '{{question}} {{answer}}'. The data has {c.listed(table)}."
        )
    for name in fields:
        feature = c.feature_of(table, name)
        if feature is None:
            raise InputError(f"The data has no column {name!r}; it has {c.listed(table)}. Correct --template.")
        if not (c.is_text(feature) or c.may_be_class(feature)):
            what = f"The column {name!r} of --template holds {c.describe_feature(feature)}, expected text or numbers"
            raise InputError(f"{what}. Leave it out.")
    label = args.label_column or (fields[-1] if len(fields) > 1 else None)
    if label is not None and label not in fields:
        raise InputError(f"--label-column {label!r} is none of the columns of --template ({', '.join(fields)}).")
    return Columns(template=template, fields=tuple(dict.fromkeys(fields)), label=label)


def filled(columns: Columns, row: Mapping[str, Any]) -> tuple[str, str]:
    """What a template makes of a row: the text before what is to be predicted, and the rest.

    Without a label all of it is to be predicted.
    """
    if columns.template is ALPACA:
        instruction, extra = (str(row.get(name) or "") for name in (*columns.fields, "")[:2])
        paired = bool(extra.strip())
        head = ALPACA.format(
            with_input=PAIRED if paired else "",
            instruction=instruction,
            input=f"### Input:\n{extra}\n\n" if paired else "",
        )
        return head, str(row[str(columns.label)])
    parts = ["", ""]
    place = 0 if columns.label is not None else 1
    for literal, name, spec, conversion in Formatter().parse(str(columns.template)):
        parts[place] += literal
        if name is None:
            continue
        place = 1 if name == columns.label else place
        value = c.cell(row, name)
        shown = Formatter().convert_field("" if value is None else value, conversion)  # type: ignore[arg-type]
        parts[place] += format(shown, spec or "")
    return parts[0], parts[1]
