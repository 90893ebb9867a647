"""Conversations become texts by the model's chat template, or are refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import task_models as m

from hf_pacgen.command_line.inputs.chat import Chat, extras_of, messages_of
from hf_pacgen.errors import InputError

TALK = [{"role": "user", "content": "the sky ?"}, {"role": "assistant", "content": "blue"}]


def chat(template: str | None) -> Chat:
    tokens = m.tokenizer(pairs=False)
    tokens.chat_template = template
    return Chat(tokens)


def test_messages_of_other_names() -> None:
    shared: list[dict[str, Any]] = [
        {"from": "human", "value": "the sky ?", "weight": None},
        {"from": "gpt", "value": "blue"},
    ]
    assert messages_of(shared, 0) == TALK
    with pytest.raises(InputError, match=r"Row 3 .* a message without a role \(content\)"):
        messages_of([{"content": "a"}], 3)
    with pytest.raises(InputError, match=r"Row 4 .* has no message"):
        messages_of([], 4)


def test_tools_are_given_to_the_template() -> None:
    assert (
        extras_of({"tools": '[{"name": "f"}]'}) == extras_of({"tools": [{"name": "f"}]}) == {"tools": [{"name": "f"}]}
    )
    assert extras_of({"tools": None}) == extras_of({}) == {}


def test_a_tokenizer_without_a_template(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tokenizer has no chat template"):
        m.subject(m.llama(tmp_path / "model"), [{"messages": TALK}])


def test_a_template_that_writes_beginnings_otherwise() -> None:
    changing = "{{ messages | length }} " + m.UNMARKED
    with pytest.raises(InputError, match=r"does not mark what the assistant says .*row 7, turn 1"):
        chat(changing).marked([*TALK, *TALK], 7)


def test_an_assistant_that_says_nothing() -> None:
    for template in (m.MARKED, m.UNMARKED):
        with pytest.raises(InputError, match=r"In row 2 .* the assistant says nothing"):
            chat(template).marked(TALK[:1], 2)


def test_a_template_that_refuses() -> None:
    with pytest.raises(InputError, match="chat template of the model refuses a conversation: roles must alternate"):
        chat("{{ raise_exception('roles must alternate') }}").ids(TALK)


def test_prompts_and_completions_of_one_kind(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": TALK[:1], "completion": "blue"}]
    with pytest.raises(InputError, match="prompts in 'prompt' are messages and the completions in 'completion' texts"):
        m.subject(m.llama(tmp_path / "model", template=m.MARKED), rows)
