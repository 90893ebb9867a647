"""A card as the text it is: one key of its front matter or one section is changed, and the rest left as it is.

``huggingface_hub`` writes a card by writing its metadata anew, which loses comments and the way values were written.
Here one key is replaced in the text, and the outcome is read back to prove that nothing else has changed.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils import yaml_dump

from hf_pacgen.errors import InputError

LINE_BREAK = re.compile(r"\r\n|\r|\n")
OPENING = re.compile(r"\s*---[ \t]*(\r\n|\r|\n|$)")
EMPTY = re.compile(r"\s*---[ \t]*(?:\r\n|\r|\n)---[ \t]*(\r\n|\r|\n|$)")
# how a line begins that belongs to the key above it: indented, an item of a list, a comment, or empty
CONTINUES = re.compile(r"[ \t\]}]|-(\s|$)|#|$")


class Card:
    """A card as the text it is: what comes before its front matter, that, and the body.

    Attributes:
        metadata: the front matter, read.
        body: what comes after it.
        line_break: of the card.

    Raises:
        InputError: the front matter is not closed, is no YAML, is no mapping, or ``huggingface_hub`` refuses it.
    """

    def __init__(self, content: str, *, name: str = "The card") -> None:
        self.name = name
        content = content.removeprefix("\ufeff")  # a byte-order mark would hide the front matter from the hub
        found = LINE_BREAK.search(content)
        self.line_break = end = found.group() if found else "\n"
        if match := EMPTY.match(content):
            self._open, self._yaml, self._close = f"---{end}", "", f"{end}---{end}"
        elif match := REGEX_YAML_BLOCK.search(content):
            self._open, self._yaml, self._close = match.group(1, 2, 3)
        elif OPENING.match(content):
            raise self._broken("it is opened by a line '---' and not closed by another")
        else:
            self._open, self._yaml, self._close = f"---{end}", "", f"{end}---{end}{end}"
        self.body = content[match.end() :] if match else content
        try:
            metadata = yaml.safe_load(self._yaml)
        except yaml.YAMLError as error:
            raise self._broken(f"it is not YAML ({' '.join(str(error).split())})") from None
        self.metadata = {} if metadata is None else metadata
        if not isinstance(self.metadata, dict):
            raise self._broken(f"it is a {type(metadata).__name__} where keys with values are expected")
        self._check()

    def _check(self) -> None:
        try:
            to_model_card(str(self))
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # what its parser of model-index runs into
            raise self._broken(f"huggingface_hub refuses it ({error})") from None

    def _broken(self, what: str) -> InputError:
        return InputError(f"{self.name} has a broken front matter: {what}. Nothing was changed; repair it first.")

    def __str__(self) -> str:
        return f"{self._open}{self._yaml}{self._close}{self.body}" if self._yaml else self.body

    def set(self, key: str, value: Any) -> None:
        """Give a key of the front matter a value; the text of all others stays.

        Raises:
            InputError: that cannot be done without changing others.
        """
        if self.metadata.get(key) == value:
            return
        text = replace_key(self._yaml, key, value, line_break=self.line_break)
        try:
            after = yaml.safe_load(text)
        except yaml.YAMLError:
            after = None
        # the proof: a key given twice, an anchor, or a mapping on one line would have changed something else
        if after != {**self.metadata, key: value}:
            raise self._broken(f"{key!r} cannot be changed without touching the rest, so write one key on a line")
        self._yaml, self.metadata = text, after
        self._check()

    def put_section(self, name: str, text: str) -> None:
        """Put text between the markers of that name, which go to the end of a card that has none.

        Raises:
            InputError: only a part of the markers is there, or they are there twice.
        """
        begin, end = f"<!-- hf_pacgen {name}: begin.", f"<!-- hf_pacgen {name}: end -->"
        opening = f"{begin} `hf-pacgen` writes this part anew each time; add your own words outside of it. -->"
        found = [self.body.count(begin), self.body.count(end)]
        section = "\n".join([opening, "", text.strip(), "", end]).replace("\n", self.line_break)
        if found == [0, 0]:  # the first time
            gap = self.line_break * 2 if self.body.strip() else self.line_break
            self.body = self.body.rstrip() + gap + section + self.line_break
            return
        start, stop = self.body.find(begin), self.body.find(end)
        if found != [1, 1] or stop < start:
            raise InputError(
                f"{self.name} has {found[0]} lines {begin!r} and {found[1]} lines {end!r}: expected one of each, in "
                "this order, or none. Nothing was changed; remove what is left of that part."
            )
        self.body = self.body[:start] + section + self.body[stop + len(end) :]


def replace_key(text: str, key: str, value: Any, *, line_break: str = "\n") -> str:
    """YAML in which a key at the top level has another value; it is the last one if it was not there.

    >>> replace_key("a: 1  # one\\nb: [2]", "b", [3])
    'a: 1  # one\\nb:\\n- 3'
    """
    new = yaml_dump({key: value}, sort_keys=False).rstrip().split("\n")
    lines = LINE_BREAK.split(text)
    name = re.compile(rf"""(?:{re.escape(key)}|"{re.escape(key)}"|'{re.escape(key)}')\s*:""")
    start = next((i for i, line in enumerate(lines) if name.match(line)), None)
    if start is None:  # after the last line with text
        while lines and not lines[-1].strip():
            lines.pop()
        return line_break.join([*lines, *new])
    end = start + 1
    while end < len(lines) and CONTINUES.match(lines[end]):
        end += 1
    while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
        end -= 1  # these belong to the key below
    return line_break.join([*lines[:start], *new, *lines[end:]])


def to_model_card(content: str) -> ModelCard:
    """The card for ``huggingface_hub``, without its warning about a card that has no front matter."""
    logger = hub_logging.get_logger("huggingface_hub.repocard")
    level = logger.level
    logger.setLevel(hub_logging.ERROR)
    try:
        return ModelCard(content)
    finally:
        logger.setLevel(level)
