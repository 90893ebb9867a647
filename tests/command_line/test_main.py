"""``hf-pacgen`` as a program: its commands, its version, its exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import Run

from hf_pacgen import __version__
from hf_pacgen.command_line.main import COMMANDS, main


def test_version_and_list_of_commands(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out.strip() == __version__
    code, _, err = run()
    assert code == 2 and all(command in err for command in COMMANDS)


def test_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupt)
    assert run("score")[0] == 130


def test_as_a_program(models: dict[str, Path], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "hf_pacgen", "score", str(models["classifier"]), "--dataset"]
    done = subprocess.run([*words, "missing.parquet"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("hf-pacgen: error: The data set file 'missing.parquet' does not exist.*\n", done.stderr)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_ends_with_examples_and_exit_codes(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert left.value.code == 0 and lines[-1].startswith("Exit codes: 0 done; 2 bad input")
    if command and command != ["register"]:
        place = lines.index("examples:")
        assert all(line.startswith(f"  hf-pacgen {command[0]} ") for line in lines[place + 1 : -1]) and lines[place + 1]


def test_the_first_help_needs_no_large_library() -> None:
    code = (
        "import sys; from hf_pacgen.command_line.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'datasets', 'argcomplete', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
