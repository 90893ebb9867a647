"""Thresholds are those that were asked for, share δ with the error, and hold as often as they say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from certificates import batches
from promised import DELTA, DRAWS, LEAST, MOST, by_hand, drawn, head, held_out, logits_and_labels, promised, rate, truth

from hf_pacgen.maths.held_out_bounds import exact_error_bound
from hf_pacgen.maths.selective import set_threshold

COUNT = 100


def test_a_threshold_and_the_error_share_delta() -> None:
    training = batches(*drawn(300, 99), 50)
    data = held_out(400, 5, 50)
    result: Any = promised(head(), data, training_data=training, max_error=0.15)
    assert result.share == pytest.approx(0.05 / 3) and result.rule == "abstain" and result.target == 0.15
    errors, count = by_hand(data)
    assert result.error_bound == exact_error_bound(errors, count, 0.05 / 3)
    logits = torch.cat([head()(batch["features"])["logits"] for batch in data])
    confidences, wrong = logits.softmax(-1).amax(-1), logits.argmax(-1) != torch.cat([b["labels"] for b in data])
    assert result.threshold is not None
    answered = confidences >= result.threshold - 1e-7
    assert (result.answered, result.answered_errors) == (answered.sum(), (wrong & answered).sum())
    assert result.coverage == result.answered / 400 and 0 < result.coverage_bound < result.coverage
    assert len(result.curve) == 20 and "errs on at most 15 % of those" in result.statement
    apart = promised(head(), data, max_error=0.15)
    assert apart.answered is not None and apart.coverage is not None
    assert round(apart.answered / apart.coverage) == 320 and "drawn at random" in " ".join(apart.notes)


def test_thresholds_and_coverage_hold() -> None:
    logits, labels = logits_and_labels(200_000, 10**6)
    confidences, wrong = logits.softmax(-1).amax(-1), (logits.argmax(-1) != labels).double()
    model, failed = head(), {"error": [], "threshold": [], "coverage": []}  # type: ignore[var-annotated]
    for i in range(DRAWS):
        result = promised(model, held_out(150, i), training_data=None, max_error=0.12, delta=DELTA)
        failed["error"].append(result.error_bound < truth()["zero_one"])
        if result.threshold is None:
            failed["threshold"].append(False)
            failed["coverage"].append(False)
            continue
        answered = confidences >= result.threshold
        failed["threshold"].append(bool(wrong[answered].mean() > 0.12))
        failed["coverage"].append(bool(answered.double().mean() < (result.coverage_bound or 0)))
    any_failed = [any(flags) for flags in zip(*failed.values(), strict=True)]
    assert LEAST <= rate(any_failed) <= MOST
    assert all(rate(known) <= DELTA / 3 + 2 * math.sqrt(DELTA / 3 / DRAWS) for known in failed.values())


def test_sets_and_the_error_share_delta() -> None:
    data = held_out(COUNT, 5)
    result = promised(head(), data, coverage=0.9)
    chances = head()(data[0]["features"])["logits"].softmax(-1).double()
    labels = chances.gather(-1, data[0]["labels"][:, None]).squeeze(-1).detach().numpy()
    assert result.threshold == set_threshold(labels, coverage=0.9, delta=0.025)
    errors, count = by_hand(data)
    assert result.error_bound == exact_error_bound(errors, count, 0.025) and result.coverage_bound == 0.9
    assert result.coverage == (labels >= result.threshold).mean()
    assert result.set_size == pytest.approx(float((chances >= result.threshold).sum(1).double().mean()))
    assert "hold the label of at least 90 % of new examples" in result.statement
    assert "by its likeliest class" in result.statement


def test_a_rule_that_nobody_wrote_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_pacgen.promises.rules.rule_of", lambda config: "guess")
    with pytest.raises(ValueError, match=r"There is no way yet to find a threshold for the rule 'guess'"):
        promised(head(), held_out(COUNT, 1), coverage=0.9)
