"""The columns of a table: what each holds, and which one plays a part that no flag names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from hf_pacgen.errors import InputError

NO_LABELS = ("id", "idx", "index", "row", "uid", "guid")
# beginnings of the types that a label may have; a column of nulls is refused later, for its empty cells
NUMBERS_OR_NAMES = ("int", "uint", "bool", "float", "string", "large_string", "null")
CHAT_KEYS = ({"role", "content"}, {"from", "value"})  # of OpenAI and TRL, and of ShareGPT


PARTS = (
    "instruction question query prompt context passage paragraph article document story input inputs premise".split()
)
PARTS += "hypothesis system system_prompt history background goal ctx ctx_a ctx_b sent1 sent2 sentence".split()
"""Names of columns that are a part of what a model reads: where one is left over, the rest may be half an example."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns in use; None where the task has none.

    Attributes:
        text: the text, its words, the question, the source, the prompt, or the messages of a chat.
        text_pair: the second text, or the context of a question.
        image, audio: what is seen or heard.
        choices: the answers to choose from: one column of lists, or several columns.
        label: what the model has to predict.
        labels: several columns of yes and no, one for each of the model's labels.
        template: the text that a row of several columns makes, for a language model.
    """

    text: str | None = None
    text_pair: str | None = None
    image: str | None = None
    audio: str | None = None
    choices: tuple[str, ...] = ()
    label: str | None = None
    labels: tuple[str, ...] = ()
    template: str | None = None
    fields: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the model is given."""
        single = (self.text, self.text_pair, self.image, self.audio)
        named = (*(name for name in single if name is not None), *self.choices, *self.fields)
        return tuple(name for name in dict.fromkeys(named) if name != self.label)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What it has to predict."""
        return (*((self.label,) if self.label is not None else ()), *self.labels)

    @property
    def used(self) -> tuple[str, ...]:
        """The columns of the table that are read; of a dictionary's entry, such as ``translation.en``, the whole."""
        return tuple(dict.fromkeys(name.partition(".")[0] for name in (*self.inputs, *self.outputs)))

    @property
    def title(self) -> str:
        """Both, as in ``text -> label``."""
        return " -> ".join(filter(None, (", ".join(self.inputs), ", ".join(self.outputs))))


def feature_of(table: datasets.Dataset, name: str) -> Any:
    """What a column holds, or the entry of a column of dictionaries; None where there is none."""
    outer, _, inner = name.partition(".")
    if name in table.features:
        return table.features[name]
    found = table.features.get(outer)
    if isinstance(found, (datasets.Translation, datasets.TranslationVariableLanguages)):
        return datasets.Value("string") if inner in (found.languages or ()) else None
    return found.get(inner) if isinstance(found, Mapping) else None


def cells(rows: Mapping[str, Any], name: str) -> list[Any]:
    """The cells of a column, or of an entry of a column of dictionaries."""
    if name in rows:
        return list(rows[name])
    outer, _, inner = name.partition(".")
    return [cell[inner] for cell in rows[outer]]


def cell(row: Mapping[str, Any], name: str) -> Any:
    """The same of one row."""
    return cells({key: [value] for key, value in row.items()}, name)[0]


def those(table: datasets.Dataset, fits: Callable[[Any], bool]) -> list[str]:
    """The columns that fit."""
    return [name for name in table.column_names if fits(table.features[name])]


def well_known(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Those of the names that are known, the most telling first."""
    return [name for wanted in known for name in names if name.lower() == wanted]


def only(names: list[str]) -> list[str]:
    """A single name."""
    return names if len(names) == 1 else []


def known_pair(names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> tuple[str | None, str | None]:
    """The first pair of names that go together."""
    lower = {name.lower(): name for name in names}
    found = ((lower[first], lower[second]) for first, second in pairs if {first, second} <= set(lower))
    return next(found, (None, None))


def check_whole(table: datasets.Dataset, columns: Columns, remedy: str) -> Columns:
    """The columns that were found by their names, if no other is a part of what the model reads.

    Raises:
        InputError: there is one.  Half of an example would be scored in silence.
    """
    used = {*columns.used, *columns.choices}
    left = [name for name in those(table, is_text) if name.lower() in PARTS and name not in used]
    if left:
        raise InputError(
            f"The columns {columns.title} would be taken, and {left[0]!r} may be a part of what the model reads: the "
            f"data has {listed(table)}. {remedy}"
        )
    return columns


@dataclass(frozen=True)
class Role:
    """A part that a column plays: its name in sentences, its flag, and what may fill it."""

    name: str
    flag: str
    fits: Callable[[Any], bool]
    holds: str
    nested: bool = False  # whether it may be an entry of a column of dictionaries

    def chosen(self, table: datasets.Dataset, given: str | None, found: Sequence[str]) -> str:
        """The column that was named, or the first of those found."""
        if given is not None:
            return self.check(table, given)
        if not found:
            raise InputError(
                f"Cannot tell which column holds the {self.name}: the data has {listed(table)}. "
                f"Name it with --{self.flag}."
            )
        return found[0]

    def check(self, table: datasets.Dataset, name: str) -> str:
        """A column that was named, if it can play this part."""
        feature = feature_of(table, name) if self.nested else table.features.get(name)
        if feature is None:
            raise InputError(f"The data has no column {name!r}; it has {listed(table)}. Correct --{self.flag}.")
        if not self.fits(feature):
            raise InputError(
                f"The column {name!r} holds {describe_feature(feature)}, expected {self.holds}. Correct --{self.flag}; "
                f"the data has {listed(table)}."
            )
        return name


def listed(table: datasets.Dataset) -> str:
    """All columns with what they hold."""
    return ", ".join(f"{name!r} ({describe_feature(table.features[name])})" for name in table.column_names)


def is_text(feature: Any) -> bool:
    """Text."""
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def is_list(feature: Any) -> bool:
    """Lists of any kind."""
    return isinstance(feature, (list, datasets.List, datasets.LargeList))


def item_of(feature: Any) -> Any:
    """What the lists of a column hold."""
    return feature[0] if isinstance(feature, list) else feature.feature


def is_texts(feature: Any) -> bool:
    """Lists of texts, such as words."""
    return is_list(feature) and is_text(item_of(feature))


def is_chat(feature: Any) -> bool:
    """Lists of messages, of which each has a role and what is said."""
    if not is_list(feature):
        return False
    item = item_of(feature)
    # datasets reads JSON of messages that differ in their keys as a type of its own
    if type(item).__name__ == "Json" or (isinstance(item, datasets.Value) and item.dtype == "json"):
        return True
    return isinstance(item, Mapping) and any(keys <= set(item) for keys in CHAT_KEYS)


def is_image(feature: Any) -> bool:
    """Images; parquet files that other libraries wrote hold the bytes and the name of each file."""
    return isinstance(feature, datasets.Image) or (isinstance(feature, Mapping) and set(feature) == {"bytes", "path"})


def may_be_image(feature: Any) -> bool:
    """Images, or text: the path of an image file."""
    return is_image(feature) or is_text(feature)


def is_audio(feature: Any) -> bool:
    """Sounds, or samples with their rate."""
    if isinstance(feature, datasets.Audio):
        return True
    return isinstance(feature, Mapping) and ({"array", "sampling_rate"} <= set(feature) or is_image(feature))


def may_be_audio(feature: Any) -> bool:
    """Sounds, or text: the path of a sound file."""
    return is_audio(feature) or is_text(feature)


def may_be_class(feature: Any) -> bool:
    """Numbers or names."""
    is_plain = isinstance(feature, datasets.Value) and feature.dtype.startswith(NUMBERS_OR_NAMES)
    return is_plain or isinstance(feature, datasets.ClassLabel)


def are_classes(feature: Any) -> bool:
    """Lists of numbers or names."""
    return is_list(feature) and may_be_class(item_of(feature))


def may_be_label(feature: Any) -> bool:
    """One class, or a list of several."""
    return may_be_class(feature) or are_classes(feature)


def is_dictionary(feature: Any) -> bool:
    """Dictionaries, or lists of them."""
    return isinstance(item_of(feature) if is_list(feature) else feature, Mapping) or isinstance(
        feature, (datasets.Translation, datasets.TranslationVariableLanguages)
    )


def describe_feature(feature: Any) -> str:
    """What a column holds, in a word or two."""
    if isinstance(feature, datasets.ClassLabel):
        return f"{feature.num_classes} classes"
    if isinstance(feature, datasets.Value):
        return "text" if is_text(feature) else feature.dtype
    if is_image(feature):
        return "images"
    if is_chat(feature):
        return "messages"
    if is_texts(feature):
        return "lists of texts"
    if is_list(feature):
        return "lists"
    if isinstance(feature, Mapping):
        return f"dictionaries of {', '.join(feature)}"
    return type(feature).__name__.lower()
