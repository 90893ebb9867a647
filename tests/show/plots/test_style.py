"""What all pictures share: numbers written short, a frame, a headline, and files that come out the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sample_results import module, sample_result

from hf_pacgen.show.plots import plot_by_module, save_figure
from hf_pacgen.show.plots.style import WIDTH, compact, finish, new_axes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1234.0, "1,234"),
        (999_999.0, "999,999"),
        (1e6, "1 M"),
        (-21_937_390.0, "-21.94 M"),
        (1.5e9, "1.5 G"),
        (0.00123456, "0.001235"),
    ],
)
def test_numbers_are_written_short(value: float, text: str) -> None:
    assert compact(value) == text


def test_millions_are_written_short() -> None:
    modules = {"a": module(1, 999_999, 3), "b": module(1, 21_937_390, 3), "c": module(1, 1.5e9, 3)}
    ax = plot_by_module(sample_result(by_module=modules), per_parameter=False)
    assert {text.get_text().strip() for text in ax.texts} == {"999,999", "21.94 M", "1.5 G"}


def test_a_frame_has_two_sides_and_a_grid_along_one_axis() -> None:
    for grid in ("x", "y"):
        ax = new_axes(3.0)
        ax.plot([0, 1], [0, 1], label="a line")
        finish(ax, "Title", x="across", y="up", grid=grid)  # type: ignore[arg-type]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("across", "up")
        assert [name for name, side in ax.spines.items() if side.get_visible()] == ["left", "bottom"]
        numbered, other = (ax.xaxis, ax.yaxis) if grid == "x" else (ax.yaxis, ax.xaxis)
        assert numbered.get_gridlines()[0].get_visible() and not other.get_gridlines()[0].get_visible()
        assert numbered.get_major_formatter()(2_500_000.0, 0) == "2.5 M"


def test_a_headline_and_its_legend_stand_above_the_axes() -> None:
    ax = new_axes(3.0)
    ax.plot([0, 1], [0, 1], label="a line")
    finish(ax, "Title", x="across", columns=3)
    assert ax.get_title(loc="left") == "Title" and ax.get_title() == ""
    legend = ax.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["a line"]
    ax.figure.canvas.draw()
    assert legend.get_window_extent().y0 >= ax.get_window_extent().y1


def test_figures_have_the_size_asked_for_and_no_state_of_pyplot() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    assert new_axes(2.5).figure.get_size_inches().tolist() == [WIDTH, 2.5]  # type: ignore[union-attr]
    assert new_axes(2.5, width=4.0).figure.get_size_inches().tolist() == [4.0, 2.5]  # type: ignore[union-attr]
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_files_name_neither_date_nor_program(kind: str, tmp_path: Path) -> None:
    saved = save_figure(new_axes(2.0), tmp_path / f"a.{kind}", dpi=40)
    assert saved == tmp_path / f"a.{kind}"
    written = saved.read_bytes()
    assert b"Software" not in written and b"<dc:date>" not in written
    assert save_figure(new_axes(2.0), tmp_path / f"b.{kind}", dpi=40).read_bytes() == written


def test_where_a_picture_cannot_go(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jpg: expected a name that ends in \.png or \.svg"):
        save_figure(new_axes(2.0), tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match=r"the folder .*b does not exist\. Make it first"):
        save_figure(new_axes(2.0), tmp_path / "b" / "a.png")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'not installed: pip install "hf_pacgen\[plots\]"'):
        plot_by_module(sample_result())
