"""The sweep in its smallest mode: it resumes, and its statistics are right."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy
import pandas
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, TrainerControl, TrainerState

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import generalization_sweep as sweep
import rescaling
from sweep import models as sweep_models
from sweep import report as sweep_report
from sweep import runs as sweep_runs


@pytest.mark.slow
def test_a_sweep_trains_measures_ranks_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--smoke", "--output_dir", str(tmp_path)]
    grid = sweep.grid
    monkeypatch.setattr(sweep, "grid", lambda given: grid(given)[:3])
    table = sweep.main(arguments)
    assert len(table) == 3 and table["converged"].all() and (table["loss"] <= 0.3).all()
    assert {"trend_batch.png", "trend_rate.png", "table.md", "runs.parquet"} <= {p.name for p in tmp_path.iterdir()}
    # a finished run is read; one whose measures are missing is measured again, at the same weights
    first = sorted(path for path in tmp_path.glob("*/result.json"))
    before = [json.loads(path.read_text()) for path in first]
    first[0].unlink()
    monkeypatch.setattr(sweep_runs, "train", lambda *a: pytest.fail("trained again"))
    again = sweep.main(arguments)
    now = json.loads(first[0].read_text())
    assert now["trace"] == pytest.approx(before[0]["trace"]) and len(again) == 3


def sentences(count: int = 24) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 12, (count,), generator=generator)
    mask = (torch.arange(16) < lengths[:, None]).long()
    tokens = torch.randint(2, 30, (count, 16), generator=generator) * mask
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens[:, 0] % 2}


def tiny_bert(run: sweep_runs.RunSettings) -> BertForSequenceClassification:
    sweep_runs.set_seed(run.seed)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertForSequenceClassification(config)
    model.bert.embeddings.requires_grad_(False)
    return model


def test_a_run_on_text_measures_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_runs, "columns", lambda *a: sentences())
    monkeypatch.setattr(sweep_runs, "model_of", tiny_bert)
    run = sweep_runs.RunSettings("tweets", 8, 3e-3, 0.0, 0, 0, 24, 0.3, 1000, "")
    result = sweep_runs.one_run(run, str(tmp_path))
    assert result["converged"] and result["loss"] <= 0.3
    data, _ = sweep_runs.data_of(run)
    model, _ = sweep_runs.trained(run, data, tmp_path / run.name / "model.safetensors")
    weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    assert result["|w|"] == pytest.approx(weights.norm().item()) and result["lambda_max"] > 0
    assert result["K[n,0.1,0.01]"] / result["K/m[n,0.1,0.01]"] == pytest.approx(len(weights))
    ratios = [result[f"rho[0.1,0.01{label}]"] for label in (",rho=0", ",rho=median", "")]
    assert ratios == sorted(ratios) and ratios[0] == 0 < ratios[1]
    assert "certificate" not in result and sweep_runs.one_run(run, str(tmp_path)) == result


def test_batches_of_a_length_have_hardly_any_padding() -> None:
    data = sentences()
    ordered = sweep_models.by_length(data)
    assert sorted(ordered["input_ids"].tolist()) == sorted(data["input_ids"].tolist())
    rows = {tuple(tokens): label for tokens, label in zip(data["input_ids"].tolist(), data["labels"], strict=True)}
    assert all(rows[tuple(t)] == b for t, b in zip(ordered["input_ids"].tolist(), ordered["labels"], strict=True))
    cells = [sum(b["input_ids"].numel() for b in sweep_models.cut(d, 4)) for d in (data, ordered)]
    assert data["attention_mask"].sum() <= cells[1] < cells[0]
    images = {"pixel_values": torch.zeros(2, 1), "labels": torch.zeros(2)}
    assert sweep_models.by_length(images) is images


def test_training_is_looked_at_more_often_near_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = sweep_runs.UntilLoss([], target=0.1, every=8, near=3.0)
    looked: list[int] = []
    losses = iter([0.5, 0.4, 0.29, 0.2, 0.1])
    state, control = TrainerState(), TrainerControl()

    def loss(*given: object) -> tuple[float, float]:
        looked.append(state.global_step)
        return next(losses), 0.0

    monkeypatch.setattr(sweep_runs, "mean_loss", loss)
    while not control.should_training_stop:
        state.global_step += 1
        stop.on_step_end(None, state, control, model=None)
    assert looked == [8, 16, 24, 26, 28] and stop.loss == 0.1


@pytest.mark.parametrize(("task", "runs", "whole"), [("mnist", 68, 48), ("tweets", 24, 24)])
def test_the_grids_are_full(task: str, runs: int, whole: int) -> None:
    grid = sweep.grid(sweep.Arguments(task=task))
    table = pandas.DataFrame([vars(run) for run in grid])
    assert len(table) == len({run.name for run in grid}) == runs and len(sweep_report.factorial(table)) == whole
    if task == "tweets":  # of two seeds
        assert len(sweep_report.factorial(table[:16])) == 16


@pytest.mark.slow
def test_rescaling_prints_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    found = rescaling.main(["--smoke"])
    assert found["5"]["rho[0.1,0.1]"] > 2 * found["1"]["rho[0.1,0.1]"] and "K/m[n,0.1,0.1" in capsys.readouterr().out


def test_the_granulated_coefficient_fixes_the_other_axes() -> None:
    """Within each width the measure follows the gap; over everything it does not."""
    rows = [
        {"batch_size": b, "learning_rate": 0.1, "weight_decay": 0.0, "width": w, "seed": s}
        | {"gap": b + 100 * w, "trace": b - 50 * w + s, "converged": True}
        for b in (8, 16, 32)
        for w in (4, 8)
        for s in (0, 1)
    ]
    table = pandas.DataFrame(rows)
    (row,) = sweep_report.correlations(table)
    assert row["measure"] == "trace" and row["batch_size"] == 1.0 and row["width"] == -1.0
    assert row["granulated"] == 0.0 and row["batch axis"] == 1.0
    assert row["grid interval"][0] <= row["grid"] <= row["grid interval"][1]
    assert row["granulated interval"] == (0.0, 0.0)


def test_the_full_grid_is_found_among_the_axes() -> None:
    whole = [
        {"batch_size": b, "learning_rate": r, "weight_decay": 0.0, "width": 6, "seed": s}
        for b in (8, 32)
        for r in (0.1, 0.2)
        for s in (0, 1)
    ]
    extra = [{"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0, "width": 6, "seed": 2}]
    found = sweep_report.factorial(pandas.DataFrame(whole + extra))
    assert len(found) == 8 and set(found["batch_size"]) == {8, 32}


def test_a_run_that_failed_takes_no_other_with_it() -> None:
    rows = [
        {"batch_size": b, "learning_rate": r, "weight_decay": 0.0, "width": 6, "seed": 0}
        | {"gap": b + r, "trace": b - r, "converged": (b, r) != (8, 1)}
        for b in (8, 32)
        for r in (1, 2)
    ]
    (row,) = sweep_report.correlations(pandas.DataFrame(rows))
    assert row["batch_size"] == 1.0 and row["learning_rate"] == -1.0  # one pair each
    assert row["grid"] == pytest.approx(1 / 3)


def test_the_interval_of_a_perfect_ranking_is_a_point() -> None:
    generator = numpy.random.default_rng(0)
    assert sweep_report.tau_interval(range(10), range(10), generator) == (1.0, 1.0)


def test_the_interval_of_a_mean_of_means_shrinks_with_the_groups() -> None:
    """The standard error of a mean of 25 signs is 0.2, and of three such means 0.2/sqrt(3)."""
    signs = [1.0, -1.0] * 12 + [1.0]
    for count in (1, 3):
        low, high = sweep_report.mean_interval([signs] * count, numpy.random.default_rng(0))
        assert high - low == pytest.approx(2 * 1.96 * 0.2 / count**0.5, rel=0.1)
