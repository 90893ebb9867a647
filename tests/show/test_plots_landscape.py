"""Pictures of the landscape: what they show, in numbers and words.  How they look was looked at."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from sample_results import sample_result

from hf_pacgen.results.landscape import LossSlice
from hf_pacgen.results.measures import Measures
from hf_pacgen.results.sharpness import Sharpness
from hf_pacgen.results.spectrum import Spectrum
from hf_pacgen.show.plots import plot_gap, plot_loss_slice, plot_spectral_density, save_figure

ROOT = Path(__file__).parents[2]
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
SPECTRUM = Spectrum(
    eigenvalues=(8.0, 4.0),
    residuals=(1e-6, 0.3),
    converged=(True, False),
    trace=12.5,
    trace_stderr=0.25,
    nodes=(8.0, 4.0, 0.0, 0.5),
    weights=(0.01, 0.01, 0.9, 0.08),
    eigenvectors=None,
    num_parameters=100,
    num_examples=10,
    num_units=10.0,
    iterations=7,
    probes=1,
    num_hvps=19,
    hvp_method="reverse_over_reverse",
    status=(),
    config={},
)


def measures(name: str, complexity: float, gap: float | None) -> Measures:
    values: dict[str, Any] = {field.name: 0.0 for field in dataclasses.fields(Measures)}
    return Measures(
        **values | {"name": name, "kl_complexity_per_parameter": complexity, "gap": gap, "loss": 5 - complexity}
    )


def curves(ax: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}  # type: ignore[arg-type]


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


def test_the_density_and_the_eigenvalues_found() -> None:
    ax = plot_spectral_density(SPECTRUM, points=2001)
    drawn = curves(ax)
    x, y = (torch.tensor(v, dtype=torch.float64) for v in drawn["spectral density"])
    assert torch.trapezoid(y, x).item() == pytest.approx(1, abs=1e-3)
    assert torch.equal(y, SPECTRUM.density(x)) and ax.get_yscale() == "log"
    assert drawn["eigenvalues found"][0] == [8] and drawn["not converged"][0] == [4]
    assert ax.get_title(loc="left") == "Spectrum of the Hessian of 100 weights\nlargest found 8, trace 12.5 ± 0.25"
    wide = curves(plot_spectral_density(SPECTRUM, bandwidth=1.0))["spectral density"]
    assert max(wide[1]) < float(y.max()) and min(wide[0]) == -4
    one = dataclasses.replace(SPECTRUM, eigenvalues=(0.0,), converged=(True,), nodes=(0.0,), weights=(1.0,))
    assert plot_spectral_density(one).get_xlim()[0] < 0


def test_the_gap_and_its_rank_correlation() -> None:
    rows = [measures("a", 1.0, 0.1), measures("b", 2.0, 0.5), measures("c", 3.0, 0.4)]
    ax = plot_gap(rows)
    assert ax.collections[0].get_offsets().tolist() == [[1, 0.1], [2, 0.5], [3, 0.4]]  # type: ignore[union-attr]
    assert [text.get_text() for text in ax.texts] == ["a", "b", "c"]
    assert ax.get_xlabel() == "K(η)/m, in nats"
    assert ax.get_title(loc="left").endswith("rank correlation (Spearman) +0.50")
    assert plot_gap(rows, measure="loss").get_xlabel() == "training loss"
    scores = [sample_result(kl_complexity_per_parameter=value) for value in (1.0, 2.0)]
    ax = plot_gap(scores, [0.2, 0.1], labels=["x", "y"])
    assert "-1.00" in ax.get_title(loc="left") and ax.texts[1].get_text() == "y"
    assert "is undefined" in plot_gap([SPECTRUM, SPECTRUM], [1, 2]).get_title(loc="left")
    assert (
        plot_gap([SPECTRUM] * 2, [1, 2]).get_xlabel() == "λ_max of the Hessian" and not plot_gap(scores, [1, 2]).texts
    )


def test_pictures_are_the_same_again(tmp_path: Path) -> None:
    for draw in (lambda: plot_loss_slice(PLANE), lambda: plot_spectral_density(SPECTRUM)):
        first = save_figure(draw(), tmp_path / "a.png").read_bytes()
        assert save_figure(draw(), tmp_path / "b.png").read_bytes() == first


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_spectral_density(SPECTRUM, points=1), "points must be at least 2; got 1"),
        (
            lambda: plot_spectral_density(SPECTRUM, bandwidth=0),
            "bandwidth must be a finite number greater than 0; got 0",
        ),
        (lambda: plot_spectral_density(dataclasses.replace(SPECTRUM, nodes=())), "measured with probes=0"),
        (lambda: plot_gap([sample_result()], [1]), "at least 2 results; got 1"),
        (lambda: plot_gap([sample_result(), SPECTRUM], [1, 2]), "must all be of one kind.*got PACGenResult, Spectrum"),
        (lambda: plot_gap([sample_result()] * 2, [1]), "gaps must have one entry for each of the 2 results; got 1"),
        (lambda: plot_gap([sample_result()] * 2), "gaps must have one entry for each of the 2 results; got 0"),
        (lambda: plot_gap([sample_result()] * 2, [1, 2], labels=["a"]), "labels must have one entry.*got 1"),
        (lambda: plot_gap([sample_result()] * 2, [1, float("nan")]), "the gaps must be finite numbers"),
        (lambda: plot_gap([measures("a", 1, None), measures("b", 2, 1)]), "the gaps must be finite numbers"),
        (
            lambda: plot_gap([sample_result()] * 2, [1, 2], measure="config"),
            "PACGenResult has no number 'config' to draw",
        ),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_result_of_another_kind_has_its_measure() -> None:
    rise = Sharpness(
        mean=0.5,
        stderr=0.1,
        draws=3,
        converged=True,
        loss=1.0,
        num_examples=1,
        num_units=1.0,
        num_forward=7,
        noise_scale=0.1,
        status=(),
        config={},
    )
    ax = plot_gap([rise, dataclasses.replace(rise, mean=0.7)], [0.1, 0.3])
    assert ax.get_xlabel() == "expected sharpness" and "+1.00" in ax.get_title(loc="left")


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
