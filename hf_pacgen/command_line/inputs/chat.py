"""Conversations as tokens, and which of them the assistant says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_pacgen.errors import InputError, refusing

ROLES = {"human": "user", "gpt": "assistant"}  # of ShareGPT, in the words of chat templates
Messages = list[dict[str, Any]]


def messages_of(cell: Sequence[Mapping[str, Any]], row: int) -> Messages:
    """The messages of a cell as chat templates take them: ``from`` and ``value`` renamed, keys of no value left out."""
    found: Messages = []
    for message in cell:
        made = {key: value for key, value in message.items() if value is not None}
        if "from" in made:
            made["role"] = made.pop("from")
        if "value" in made:
            made["content"] = made.pop("value")
        if "role" not in made:
            raise InputError(
                f"Row {row} (counted from 0) has a message without a role ({', '.join(made) or 'empty'}): expected "
                "role and content in each. Repair or remove it."
            )
        made["role"] = ROLES.get(made["role"], made["role"])
        found.append(made)
    if not found:
        raise InputError(f"Row {row} (counted from 0) has no message: expected at least one. Remove it.")
    return found


class Chat:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        template = tokenizer.chat_template
        if not template:
            raise InputError(
                "The data are conversations, and the model's tokenizer has no chat template that makes a text of them: "
                "save the one the model was trained with (tokenizer.chat_template = ...; tokenizer.save_pretrained()), "
                "or make texts of the messages yourself."
            )
        text = " ".join(template.values()) if isinstance(template, Mapping) else template
        self.tokenizer = tokenizer
        # by this mark a template says which tokens are the assistant's
        self.marks = re.search(r"\{%-?\s*generation\s*-?%\}", text) is not None

    def ids(self, messages: Messages, *, prompt: bool = False, extra: Mapping[str, Any] | None = None) -> list[int]:
        """The tokens of a conversation; with ``prompt``, up to where the assistant begins to speak."""
        made = self._applied(messages, add_generation_prompt=prompt, **(extra or {}))
        return list(made["input_ids"])

    def marked(
        self, messages: Messages, row: int, extra: Mapping[str, Any] | None = None
    ) -> tuple[list[int], list[bool]]:
        """The tokens, and which of them are the assistant's.

        A template that does not mark them is asked for the conversation up to each of the assistant's turns and up to
        its end: what the turn adds is the assistant's, its end mark included.
        """
        if self.marks:
            made = self._applied(messages, return_assistant_tokens_mask=True, **(extra or {}))
            ids, mask = list(made["input_ids"]), [bool(one) for one in made["assistant_masks"]]
        else:
            ids = self.ids(messages, extra=extra)
            mask = [False] * len(ids)
            for turn, message in enumerate(messages):
                if message["role"] != "assistant":
                    continue
                before = self.ids(messages[:turn], prompt=True, extra=extra) if turn else []
                after = self.ids(messages[: turn + 1], extra=extra)
                if ids[: len(after)] != after or after[: len(before)] != before:
                    raise InputError(
                        f"The chat template does not mark what the assistant says ({{% generation %}}), and writes the "
                        f"beginning of a conversation otherwise than the whole (row {row}, turn {turn}), so "
                        "--assistant-only cannot tell its tokens. Save a template with these marks, or leave it out."
                    )
                mask[len(before) : len(after)] = [True] * (len(after) - len(before))
        if not any(mask):
            raise InputError(
                f"In row {row} (counted from 0) the assistant says nothing: expected a message of the role 'assistant' "
                "in each, with --assistant-only. Remove it, or leave out --assistant-only."
            )
        return ids, mask

    def _applied(self, messages: Messages, **settings: Any) -> Any:
        with refusing("The chat template of the model refuses a conversation", "Repair it, or the template."):
            return self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **settings)


def extras_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What else a row says to the template: the tools that the assistant may call."""
    tools = row.get("tools")
    return {"tools": json.loads(tools) if isinstance(tools, str) else tools} if tools else {}
