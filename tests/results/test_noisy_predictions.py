"""Noisy predictions as a result: their numbers are kept in a file, their tensors are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

from hf_pacgen import NoisyPredictions, noisy_predictions


def predicted(**options: Any) -> NoisyPredictions:
    return noisy_predictions(tiny.make("vit"), [tiny.examples("vit", 9)], 0.2, 2, progress=False, **options)


def test_numbers_are_written_and_read(tmp_path: Path) -> None:
    found = predicted()
    found.save(tmp_path / "result.json")
    again = NoisyPredictions.load(tmp_path / "result.json")
    assert again.metrics() == found.metrics() and again.plain == found.plain and again.bin_count == found.bin_count
    assert again.probabilities is None and again.origin == found.origin and again.origin["model"]["weights"]
    assert sum(found.bin_count) == sum(found.plain_bins["bin_count"]) == found.num_predictions == 9
    assert found.metrics("test_")["test_nll"] == found.nll
    with pytest.raises(ValueError, match="keeps the numbers and not the predictions"):
        again.table()


def test_a_row_for_each_prediction() -> None:
    found = predicted(top_classes=2)
    table = found.table()
    names = ["example", "label", "predicted", "confidence", "entropy", "expected_entropy", "mutual_information"]
    assert list(table) == [*names, "spread", "classes", "probabilities"]
    assert {len(column) for column in table.values()} == {9} and len(table["probabilities"][0]) == 2
    assert table["example"] == list(range(9)) and table["confidence"] == [max(row) for row in table["probabilities"]]


def test_it_shows_its_numbers() -> None:
    assert "adaptive ECE" in repr(predicted()) and "Brier score" in predicted()._repr_html_()
