"""A card as text: one part is changed, the rest stays, and what is broken is not touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from sample_cards import CERTIFICATE, EXISTING, write
from sample_results import sample_result

from hf_pacgen.errors import InputError
from hf_pacgen.show.cards.document import Card, replace_key
from hf_pacgen.show.cards.update import update_model_card

RESULT = sample_result()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my-model").mkdir()
    return tmp_path / "my-model"


BEGIN, END = "<!-- hf_pacgen score: begin. -->", "<!-- hf_pacgen score: end -->"


BROKEN = {
    "yaml": ("---\nlicense: [mit\n---\n# T\n", r"broken front matter: it is not YAML \(.*\)\. Nothing was changed"),
    "tab": ("---\na:\n\t- b\n---\n", "it is not YAML"),
    "list": ("---\n- mit\n---\n", "it is a list where keys with values are expected"),
    "text": ("---\nmit\n---\n", "it is a str where"),
    "not closed": ("---\nlicense: mit\n# Title\n", "opened by a line '---' and not closed"),
    "index": ("---\nmodel-index:\n- name: x\n---\n", r"huggingface_hub refuses it \(.*results"),
    "index without data": (
        "---\nmodel-index:\n- name: x\n  results:\n  - task: {type: a}\n    metrics: []\n---\n",
        "huggingface_hub refuses it",
    ),
    "index of text": ("---\nmodel-index: x\n---\n", "huggingface_hub refuses it"),
    "keys": ("---\n1: x\n---\n", "huggingface_hub refuses it"),
    "one line": ("---\n{license: mit}\n---\n", "cannot be changed without touching the rest"),
    "twice": ("---\nmodel-index: []\nmodel-index: []\n---\n", "cannot be changed without touching the rest"),
    "anchor": ("---\nmodel-index: &a []\nb: *a\n---\n", "cannot be changed without touching the rest"),
    "begin alone": (f"# T\n{BEGIN}\n", "has 1 lines .* and 0 lines .*remove what is left"),
    "end first": (f"{END}\n{BEGIN}\n", "expected one of each, in this order"),
    "two sections": (f"{BEGIN}{END}{BEGIN}{END}", "has 2 lines"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_card_is_not_touched(case: str, folder: Path) -> None:
    text, message = BROKEN[case]
    card = write(folder, text)
    with pytest.raises(InputError, match=message):
        update_model_card(folder, RESULT, CERTIFICATE)
    assert [path.name for path in folder.iterdir()] == ["README.md"]
    assert card.read_bytes() == text.encode()


def test_replacing_a_key_keeps_the_comments_around_it() -> None:
    text = "a: 1\n# about b\nb:\n- 1\n# within\n- 2\n\n# about c\nc: 3"
    assert replace_key(text, "b", [4]) == "a: 1\n# about b\nb:\n- 4\n\n# about c\nc: 3"
    assert replace_key("a: 1\n\n", "b", "x") == "a: 1\nb: x"
    assert replace_key("", "b", "x") == "b: x"
    assert replace_key("'b': {x: 1,\n  y: 2\n}\na: 1", "b", 0) == "b: 0\na: 1"


def test_a_card_that_is_not_changed_is_the_same_text() -> None:
    spaced = "  \n---\na: 1\n---  \nbody"
    if REGEX_YAML_BLOCK.search(spaced) is None:  # the first releases of huggingface_hub 1 read no such card
        spaced = "  \n---\na: 1\n---\nbody"
    for text in (EXISTING, EXISTING.replace("\n", "\r\n"), "", "# T", spaced):
        assert str(Card(text)) == text
