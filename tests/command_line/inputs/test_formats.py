"""The forms of a language model's data: which columns are the text, the prompt, the chat, the template's."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.command_line.inputs.formats import ALPACA, filled, language_columns, whole_text
from hf_pacgen.errors import InputError

TEXT, INT = datasets.Value("string"), datasets.Value("int64")
CHAT = datasets.List({"role": TEXT, "content": TEXT})
SHARED = datasets.List({"from": TEXT, "value": TEXT})


def table(columns: dict[str, Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({name: [] for name in columns}, datasets.Features(columns))


def found(columns: dict[str, Any], **given: Any) -> Any:
    return language_columns(table(columns), DataArguments(dataset=["data"], **given))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": TEXT, "prompt": TEXT, "url": TEXT}, "prompt"),
        ({"prompt": TEXT, "completion": TEXT, "id": TEXT}, "prompt -> completion"),
        ({"prompt": CHAT, "completion": CHAT}, "prompt -> completion"),
        ({"messages": CHAT, "source": TEXT}, "messages"),
        ({"conversations": SHARED}, "conversations"),
        ({"instruction": TEXT, "input": TEXT, "output": TEXT, "text": TEXT}, "instruction, input -> output"),
        ({"instruction": TEXT, "context": TEXT, "response": TEXT}, "instruction, context -> response"),
        ({"prompt": TEXT, "completion": TEXT, "question": TEXT}, "prompt -> completion"),
        ({"question": TEXT, "answer": TEXT}, "question -> answer"),
        ({"prompt": TEXT}, "prompt"),
        ({"body": TEXT, "stars": INT}, "body"),
    ],
)
def test_columns(columns: dict[str, Any], expected: str) -> None:
    title = found(columns).title
    assert title == ("text" if "url" in columns else expected)


def test_columns_that_are_named() -> None:
    columns = {"a": TEXT, "b": TEXT, "talk": CHAT}
    assert found(columns, text_column="a").title == "a"
    assert found(columns, text_column="talk").title == "talk"
    assert found(columns, text_column="a", label_column="b").title == "a -> b"
    assert whole_text(table(columns), DataArguments(dataset=["data"], text_column="b")).title == "b"


def test_templates_are_filled() -> None:
    columns = found({"q": TEXT, "n": INT, "a": TEXT}, template="Q{{}}: {q} ({n})\\n### {a}\\t!")
    assert (columns.label, columns.title) == ("a", "q, n -> a")
    assert filled(columns, {"q": "sky?", "n": 3, "a": "blue"}) == ("Q{}: sky? (3)\n### ", "blue\t!")
    earlier = found({"q": TEXT, "a": TEXT, "why": TEXT}, template="{q} {a} {why}", label_column="a")
    assert filled(earlier, {"q": "sky?", "a": "blue", "why": None}) == ("sky? ", "blue ")
    whole = found({"q": TEXT}, template="# {q}")
    assert whole.label is None and filled(whole, {"q": "sky"}) == ("", "# sky")


def test_alpaca() -> None:
    columns = found({"instruction": TEXT, "input": TEXT, "output": TEXT})
    assert columns.template is ALPACA
    with_input, answer = filled(columns, {"instruction": "Say.", "input": "sky", "output": "blue"})
    assert with_input == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nSay.\n\n### Input:\nsky\n\n"
        "### Response:\n"
    )
    assert answer == "blue"
    without, _ = filled(columns, {"instruction": "Say.", "input": None, "output": "blue"})
    assert without == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nSay.\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        ({"a": TEXT}, {"template": "{a"}, r"--template cannot be read: .* Write a brace that is text as"),
        ({"a": TEXT}, {"template": "good"}, "names no column: expected names in braces"),
        ({"a": TEXT}, {"template": "{}"}, "names a column of no name"),
        ({"a": TEXT}, {"template": "{b}"}, r"no column 'b'; it has 'a' \(text\). Correct --template"),
        ({"a": CHAT}, {"template": "{a}"}, "'a' of --template holds messages, expected text or numbers"),
        ({"a": TEXT, "b": TEXT}, {"template": "{a}", "label_column": "b"}, "'b' is none of the columns of --template"),
        ({"a": TEXT, "b": TEXT}, {}, "which column holds the text"),
    ],
)
def test_what_is_refused(columns: dict[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        found(columns, **given)


def test_messages_written_as_text_are_no_texts() -> None:
    rows = datasets.Dataset.from_list([{"messages": '[{"role": "user", "content": "what ?"}]'}])
    with pytest.raises(InputError, match=r"'messages' holds messages written as text .*Read them with json.loads"):
        language_columns(rows, DataArguments(dataset=["data"]))
    rows = datasets.Dataset.from_list([{"dialogue": "A: what ? B: blue"}])
    assert language_columns(rows, DataArguments(dataset=["data"])).title == "dialogue"
