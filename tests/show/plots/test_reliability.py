"""The reliability diagram."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

from hf_pacgen import noisy_predictions
from hf_pacgen.show.plots import plot_reliability, save_figure


def test_it_has_both_ways_and_the_diagonal(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    found = noisy_predictions(tiny.make("vit"), [tiny.examples("vit", 30)], 0.5, 2, progress=False)
    axes: Any = plot_reliability(found)
    diagonal, plain, noisy = axes.lines
    assert list(diagonal.get_xdata()) == [0, 1]
    assert list(noisy.get_xdata()) == list(found.bin_confidence) and list(noisy.get_ydata()) == list(found.bin_accuracy)
    assert list(plain.get_xdata()) == list(found.plain_bins["bin_confidence"])
    assert "ECE" in axes.get_title(loc="left") and "without noise" in axes.get_title(loc="left")
    assert save_figure(axes, tmp_path / "curve.png").stat().st_size > 10_000
    alone: Any = plot_reliability(noisy_predictions(tiny.make("vit"), [tiny.examples("vit", 9)], 0, progress=False))
    assert len(alone.lines) == 2


def test_without_labels_there_is_none() -> None:
    batch = {"pixel_values": tiny.examples("vit", 3)["pixel_values"]}
    with pytest.raises(ValueError, match="There is no reliability to draw: the predictions have no labels"):
        plot_reliability(noisy_predictions(tiny.make("vit"), [batch], 0, progress=False))
