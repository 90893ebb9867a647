"""The pages of numbers and of messages say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from hf_pacgen.results.pacgen import PACGenResult

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "docs" / "guides"


def test_every_number_is_explained_as_in_its_table() -> None:
    page = (GUIDES / "which-number.md").read_text(encoding="utf-8")
    for facts in PACGenResult.facts().values():
        if facts.label and not facts.legacy:
            meaning = facts.meaning.replace("|w_i|", r"\|w_i\|")
            assert f"| {facts.label} | {meaning} |" in page, facts.label


def test_every_message_on_the_page_is_said() -> None:
    code = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "hf_pacgen").rglob("*.py"))
    code = re.sub(r"\"\s*f?\"", "", code)  # strings over several lines
    page = (GUIDES / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]*)`", page, re.MULTILINE)
    assert len(messages) > 10
    known = {message: message in code for message in messages}
    known["is left unranked"] = "left unranked" in code  # "is" or "are"
    assert all(known.values()), known
