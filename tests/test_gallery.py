"""The scripts that draw the gallery, in their tiny mode."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("script", "flags", "pictures"),
    [
        ("toy_landscape.py", ["--smoke"], {"toy_landscape", "toy_decisions"}),
        (
            "gallery.py",
            ["--smoke"],
            {"modules", "hessian_diagonal", "spectral_density", "loss_line", "loss_plane", "gap"},
        ),
    ],
)
def test_the_gallery_is_drawn_by_scripts(
    script: str,
    flags: list[str],
    pictures: set[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    main = runpy.run_path(str(ROOT / "examples" / script), run_name="example")["main"]
    main(["--output", str(tmp_path), *flags])
    printed = capsys.readouterr().out
    page = (ROOT / "examples" / "gallery.md").read_text(encoding="utf-8")
    for name in pictures:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"](pictures/{name}.png)" in page and (ROOT / "examples" / "pictures" / f"{name}.png").is_file()
    if script.startswith("toy"):
        rows = {
            line.split("│")[1].strip(): line.split("│")[2:4] for line in printed.splitlines() if line.count("│") == 4
        }
        sharp, flat = ({name: float(cells[i]) for name, cells in rows.items()} for i in (0, 1))
        assert sharp["loss"] < flat["loss"] and sharp["bound"] > flat["bound"] and sharp["K(39)"] > flat["K(39)"]
        assert sharp["λ_max"] > 5 * flat["λ_max"]
