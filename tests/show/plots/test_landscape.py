"""Pictures of the landscape: what they show, in numbers and words.  How they look was looked at."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from drawn import curves

from hf_pacgen.results.landscape import LossSlice
from hf_pacgen.show.plots import plot_loss_slice, save_figure

STEPS = torch.linspace(-2, 2, 5, dtype=torch.float64)
LINE = LossSlice(
    steps=(STEPS,),
    losses=STEPS**2 + 0.5,
    loss=0.5,
    box=torch.tensor([-1.0, 1.0], dtype=torch.float64),
    names=("random direction 1",),
    num_parameters=1234,
)
PLANE = dataclasses.replace(
    LINE,
    steps=(STEPS, 2 * STEPS),
    losses=STEPS[:, None] ** 2 + STEPS**2 + 0.5,
    box=torch.tensor([[1.0, 0], [0, 2], [-1, 0], [0, -2], [1, 0]], dtype=torch.float64),
    names=("a", "b"),
)


def test_a_line_shows_the_loss_the_box_and_the_solution() -> None:
    ax = plot_loss_slice(LINE)
    drawn = curves(ax)
    assert drawn["training loss"] == (STEPS.tolist(), LINE.losses.tolist())
    assert drawn["solution"] == ([0], [0.5])
    (band,) = ax.patches
    assert band.get_label() == "noise box |u| ≤ N"
    assert [band.get_x(), band.get_x() + band.get_width()] == [-1, 1]  # type: ignore[attr-defined]
    assert ax.get_xlabel() == "random direction 1" and ax.get_xlim() == (-2, 2)
    assert "1,234 weights" in ax.get_title(loc="left") and "at most 1.5 in the box" in ax.get_title(loc="left")
    endless = dataclasses.replace(LINE, box=torch.tensor([-torch.inf, torch.inf]))
    (band,) = plot_loss_slice(endless).patches
    assert band.get_width() == 4  # type: ignore[attr-defined]


def test_a_plane_shows_contours_and_the_outline() -> None:
    ax = plot_loss_slice(PLANE)
    assert curves(ax)["noise box |u| ≤ N"] == ([1, 0, -1, 0, 1], [0, 2, 0, -2, 0])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xlim(), ax.get_ylim()) == ("a", "b", (-2, 2), (-4, 4))
    assert "0.5 to 8.5 in the picture" in ax.get_title(loc="left")
    filled = ax.collections[0]
    assert (filled.levels[0], filled.levels[-1]) == (0.5, 8.5)  # type: ignore[attr-defined]
    plot_loss_slice(dataclasses.replace(PLANE, losses=torch.ones(5, 5)))  # a plain has contours of no width


def test_pictures_are_the_same_again(tmp_path: Path) -> None:
    for slice in (LINE, PLANE):
        first = save_figure(plot_loss_slice(slice), tmp_path / "a.png").read_bytes()
        assert save_figure(plot_loss_slice(slice), tmp_path / "b.png").read_bytes() == first


def test_the_levels_are_even_in_the_square_root() -> None:
    levels = torch.tensor(plot_loss_slice(PLANE).collections[0].levels)  # type: ignore[attr-defined]
    gaps = (levels - 0.5).clamp(min=0).sqrt().diff()
    torch.testing.assert_close(gaps, gaps[:1].expand_as(gaps))


def test_the_highest_loss_in_the_box_is_that_of_the_steps_inside() -> None:
    narrow = dataclasses.replace(LINE, box=torch.tensor([-0.5, 2.0], dtype=torch.float64))
    assert "0.5 at the solution, at most 4.5 in the box" in plot_loss_slice(narrow).get_title(loc="left")


def test_axes_that_are_given_are_used() -> None:
    for slice in (LINE, PLANE):
        ax = plot_loss_slice(slice)
        assert plot_loss_slice(slice, ax=ax) is ax


def test_the_first_direction_runs_across() -> None:
    """A slope along it alone has contours that are upright."""
    slope = dataclasses.replace(PLANE, losses=STEPS[:, None].expand(5, 5).contiguous())
    paths = plot_loss_slice(slope).collections[1].get_paths()
    lines = [torch.as_tensor(path.vertices) for path in paths if len(path)]
    assert lines and all(float(x.max() - x.min()) < 1e-9 for x in (line[:, 0] for line in lines))
