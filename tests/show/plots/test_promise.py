"""The picture of what abstaining buys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from promised import head, held_out, promised

from hf_pacgen.maths.held_out_bounds import exact_error_bound
from hf_pacgen.show.plots import plot_coverage_risk, save_figure


def test_it_has_the_thresholds_and_the_one_that_is_promised(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    promise = promised(head(), held_out(400, 1, 50), max_error=0.15, training_data=held_out(200, 9, 50))
    axes: Any = plot_coverage_risk(promise)
    line = next(one for one in axes.lines if one.get_label() == "held-out errors")
    steps = sorted(promise.curve.values(), key=lambda step: step["answered"])
    assert list(line.get_xdata()) == pytest.approx([100 * step["answered"] / 400 for step in steps])
    assert list(line.get_ydata()) == pytest.approx([100 * step["errors"] / step["answered"] for step in steps])
    (mark,) = [one for one in axes.lines if str(one.get_label()).startswith("promised: ≥ 0.")]
    assert list(mark.get_xdata()) == pytest.approx([100 * (promise.coverage or 0)])
    band = axes.collections[0].get_paths()[0].vertices
    last = steps[-1]
    assert band[:, 1].max() >= 100 * exact_error_bound(int(last["errors"]), int(last["answered"]), promise.share)
    assert save_figure(axes, tmp_path / "curve.png").stat().st_size > 10_000
    failing = [{**batch, "labels": 1 - batch["labels"]} for batch in held_out(400, 1, 50)]
    none = plot_coverage_risk(promised(head(), failing, max_error=0.15))
    assert not [one for one in none.lines if str(one.get_label()).startswith("promised")]


def test_other_promises_have_none() -> None:
    with pytest.raises(ValueError, match="There is no curve to draw: it is of a promise that was made with max_error="):
        plot_coverage_risk(promised(head(), held_out(50, 1)))
