"""``hf-pacgen predict`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import saved_models
import torch
from command_runs import Run, refused, write_csv
from promised import NAMES, texts
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_pacgen import NoisyPredictions, noisy_predictions
from hf_pacgen.command_line.predict import write_table


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained classifier, what it was trained on, and other examples."""
    folder = tmp_path_factory.mktemp("predict")
    place = saved_models.bert(folder / "model", **NAMES)
    model: Any = AutoModelForSequenceClassification.from_pretrained(place)
    tokens = AutoTokenizer.from_pretrained(place)
    batch = tokens([text for text, _ in texts(0, 100)], padding=True, return_tensors="pt")
    labels = torch.tensor([int(label == "positive") for _, label in texts(0, 100)])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(place)
    return {
        "model": place,
        "train": write_csv(folder / "train.csv", texts(0, 100)),
        "test": write_csv(folder / "test.csv", texts(200, 60)),
    }


QUICK = ["--no-progress", "--batch-size", "50"]


def test_predictions_from_one_command(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    output, rows, plot = tmp_path / "new" / "result.json", tmp_path / "rows.csv", tmp_path / "reliability.png"
    words = ["predict", files["model"], "--data", files["test"], *QUICK, "--noise-scale", "0.3", "--draws", "2"]
    code, out, _ = run(*words, "--output", output, "--predictions", rows, "--plot", plot)
    result = NoisyPredictions.load(output)
    assert code == 0 and result.num_predictions == 60 and result.noise_scale == 0.3 and result.draws == 2
    for phrase in ("2 draws", "no noise", "adaptive ECE", "AURC", "mutual information", "Brier score", "half-width"):
        assert phrase in out
    assert f"Written to {output}" in out and result.origin["command"].startswith("hf-pacgen predict")
    table = datasets.Dataset.from_csv(str(rows), cache_dir=str(tmp_path))
    assert len(table) == 60 and {"example", "label", "confidence", "entropy", "probabilities"} <= {*table.column_names}
    assert plot.stat().st_size > 10_000
    again = run(*words, "--output", "-")
    assert json.loads(again[1])["nll"] == result.nll
    code, out, _ = run(*words, "--quiet")
    assert code == 0 and not out


def test_the_size_is_found_on_the_training_data(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    words = ["predict", files["model"], "--data", files["test"], "--training-data", files["train"], *QUICK]
    code, out, _ = run(*words, "--draws", "2", "--output", output)
    found = NoisyPredictions.load(output)
    assert code == 0 and found.auto["training_labels"] == 100 and "training labels" in out


def test_what_it_refuses(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    words = ["predict", files["model"], "--data", files["test"], *QUICK]
    refused(run, "give --training-data, or a number such as --noise-scale 0.2", *words)
    refused(run, "noise-scale must be a number of at least 0, or 'auto'; got 'big'", *words, "--noise-scale", "big")
    refused(run, "draws must be an integer of at least 1; got 0", *words, "--noise-scale", "0.1", "--draws", "0")
    refused(run, "must be a file that ends in .csv, .jsonl, .parquet; got", *words, "--predictions", tmp_path / "a.txt")


def test_files_of_predictions(tmp_path: Path) -> None:
    import tiny

    found = noisy_predictions(tiny.make("vit"), [tiny.examples("vit", 5)], 0.2, 2, progress=False)
    for ending, read in (("jsonl", datasets.Dataset.from_json), ("parquet", datasets.Dataset.from_parquet)):
        write_table(found, str(tmp_path / f"rows.{ending}"))
        table: Any = read(str(tmp_path / f"rows.{ending}"), cache_dir=str(tmp_path / ending))
        assert table[0]["probabilities"] == pytest.approx(found.probabilities[0].tolist())
    with pytest.raises(ValueError, match=r"files that end in \.csv, \.jsonl, \.parquet; got 'rows.xlsx'"):
        write_table(found, "rows.xlsx")
