"""Labels as the head of the model numbers them."""

from __future__ import annotations

from pathlib import Path

from command_runs import QUICK, ROWS, Run, refused, write_csv

from hf_pacgen import PACGenResult


def test_names_of_labels_follow_the_models_numbering(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    by_name = [(text, "Positive" if label else "negative") for text, label in ROWS]
    results: list[PACGenResult] = []
    for rows in (ROWS, by_name):
        output = tmp_path / "r.json"
        data = write_csv(tmp_path / f"{len(results)}.csv", rows)
        assert run("score", models["named"], "--dataset", data, *QUICK, "--output", output)[0] == 0
        results.append(PACGenResult.load(output))
    assert results[0].loss == results[1].loss


def test_labels_that_do_not_fit_the_model(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv", [("good", "happy"), ("bad", "negative")])
    refused(
        run,
        "label 'happy' .*none of the model's: .*'negative', 'positive'",
        "score",
        models["named"],
        "--dataset",
        data,
    )
    refused(run, "1 output, which is for regression", "score", models["regression"], "--dataset", data)
    one = write_csv(tmp_path / "one.csv", [("good", 1), ("fine", 1)])
    refused(
        run, "one single label, 1: expected at least 2", "score", models["encoder"], "--random-head", "--dataset", one
    )
