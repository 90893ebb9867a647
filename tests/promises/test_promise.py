"""What is promised holds as often as it says, and nothing is promised that may not be."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
from certificates import Head, batches
from promised import DELTA, DRAWS, LEAST, MOST, by_hand, drawn, head, held_out, logits_and_labels, promised, rate, truth
from scipy.stats import beta
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from hf_pacgen.maths.bounded_losses import Answers, PromisedLoss
from hf_pacgen.maths.held_out_bounds import betting_bound, exact_error_bound
from hf_pacgen.results.promise import Promise

COUNT = 100


def test_the_exact_bound_on_hidden_examples() -> None:
    data = held_out(500, 1, 7)
    errors, count = by_hand(data)
    result = promised(head(), data)
    assert (result.num_errors, result.num_examples, result.unit, result.loss) == (errors, 500, "example", "zero_one")
    assert result.error_bound == pytest.approx(beta.ppf(0.95, errors + 1, count - errors), abs=1e-6)
    assert result.mean_loss == errors / count and result.share == result.delta == 0.05 and result.rule is None
    assert f"errs on at most {math.ceil(1000 * result.error_bound) / 10:g} % of new examples" in result.statement
    assert "of the model Head" not in result.statement and result.origin["model"]["weights"]


def test_batches_and_their_order_change_nothing() -> None:
    features, labels = drawn(53, 2)
    whole = promised(head(), batches(features, labels, 53))
    assert promised(head(), batches(features, labels, 1)).error_bound == whole.error_bound
    turned = batches(features.flip(0), labels.flip(0), 8)
    assert promised(head(), turned).error_bound == whole.error_bound
    rows = [{"features": f, "labels": y} for f, y in zip(features, labels, strict=True)]
    assert promised(head(), Rows(rows), batch_size=5).error_bound == whole.error_bound
    assert promised(head(), Stream(rows), batch_size=5).error_bound == whole.error_bound


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, rows: list[dict[str, Tensor]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


class Stream(IterableDataset[dict[str, Tensor]]):
    def __init__(self, rows: list[dict[str, Tensor]]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def test_the_error_is_larger_than_promised_as_seldom_as_it_says() -> None:
    model, true = head(), truth()["zero_one"]
    failed = [promised(model, held_out(COUNT, i), delta=DELTA).error_bound < true for i in range(DRAWS)]
    assert LEAST <= rate(failed) <= MOST


def test_bounded_losses_hold() -> None:
    failed: dict[str, list[bool]] = {"brier": [], "exact_match": []}
    for i in range(DRAWS):
        logits, labels = logits_and_labels(COUNT, i)
        counted = torch.ones(COUNT, 1).bool()
        given = Answers(logits=logits[:, None], labels=labels[:, None], counted=counted, nothing=0)
        for name, known in failed.items():
            loss = PromisedLoss(name)
            losses = loss.facts.of(given).numpy()
            binary = loss.facts.binary
            bound = exact_error_bound(int(losses.sum()), COUNT, DELTA) if binary else betting_bound(losses, DELTA)
            known.append(bound < truth()[name])
    for name, known in failed.items():
        assert rate(known) <= MOST, name
    assert rate(failed["exact_match"]) >= LEAST


class Tagger(nn.Module):
    """Tags of given logits, with the loss of a token classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.scale * scores
        return {"logits": logits, "loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def tagged(count: int, seed: int, length: int = 20) -> list[dict[str, Tensor]]:
    """Sequences whose errors come together: of two thirds 0.1 of the tags are wrong, of the others 0.7."""
    generator = torch.Generator().manual_seed(seed)
    hard = torch.rand(count, 1, generator=generator) < 1 / 3
    wrong = torch.rand(count, length, generator=generator) < torch.where(hard, 0.7, 0.1)
    labels = torch.randint(0, 3, (count, length), generator=generator)
    scores = nn.functional.one_hot((labels + wrong.long()) % 3, 3) + 0.01 * torch.randn(3, generator=generator)
    return [{"scores": scores, "labels": labels}]


def test_tokens_of_one_text_are_not_independent() -> None:
    """Counted by sequence the promise holds; as if tokens were independent examples it fails most of the time."""
    held, naive, true = [], [], 2 / 3 * 0.1 + 1 / 3 * 0.7
    for i in range(DRAWS):
        data = tagged(60, i)
        if i < 20:
            result = promised(Tagger(), data, delta=DELTA)
            assert (result.num_examples, result.unit, result.loss) == (60, "sequence", "token_error")
            assert result.num_errors is None and "of the labels of a new sequence" in result.statement
        wrong = data[0]["scores"].argmax(-1) != data[0]["labels"]
        losses = wrong.double().mean(1).numpy()
        if i < 20:
            assert result.error_bound == pytest.approx(betting_bound(losses, DELTA), abs=1e-9)
        held.append(betting_bound(losses, DELTA) < true)
        naive.append(exact_error_bound(int(wrong.sum()), wrong.numel(), DELTA) < true)
    assert rate(held) <= MOST
    assert rate(naive) > 0.3 > MOST  # 0.42 at δ = 0.2


def test_candidates_are_paid_for() -> None:
    """The best of sixteen equally bad models looks better than it is, unless each costs δ/16."""
    rng = numpy.random.default_rng(0)
    counts = rng.binomial(COUNT, 0.3, size=(DRAWS, 16)).min(axis=1)
    assert rate([exact_error_bound(int(k), COUNT, DELTA) < 0.3 for k in counts]) > 2 * MOST
    assert rate([exact_error_bound(int(k), COUNT, DELTA / 16) < 0.3 for k in counts]) <= MOST
    data = held_out(COUNT, 3)
    errors, count = by_hand(data)
    alone = promised(head(), data, candidates=16)
    assert alone.error_bound == exact_error_bound(errors, count, 0.05 / 16) and alone.num_candidates == 16
    assert "16 candidates are paid for" in alone.statement


def test_the_best_candidate_is_promised() -> None:
    data = held_out(COUNT, 4)
    errors, count = by_hand(data)
    torch.manual_seed(0)
    bad = Head(3)
    expected = exact_error_bound(errors, count, 0.05 / 2)
    first = promised(bad, data, candidates={"good": head()})
    assert first.error_bound == expected and first.num_candidates == 2 and "the candidate 'good'," in first.statement
    second = promised(head(), data, candidates=[bad])
    assert second.error_bound == expected and "the candidate 'the model'," in second.statement
    # the origin is of the one that is promised
    assert first.origin["model"]["weights"] == second.origin["model"]["weights"]

    def at(threshold: float) -> Any:
        return lambda model, batch: ((model(batch["features"])["logits"][:, 1] > threshold) != batch["labels"]).float()

    tried = promised(
        head(), data, error_fn=at(0.0), loss="zero_one", candidates={"0.5": at(0.5), "1": at(1.0)}, delta=0.1
    )
    assert tried.num_candidates == 3 and tried.loss == "error_fn" and tried.num_errors is not None
    assert tried.error_bound == exact_error_bound(tried.num_errors, count, 0.1 / 3)


def wrong(**options: Any) -> Any:
    return lambda: promised(head(), held_out(40, 1, 10), **options)


REFUSED: dict[str, tuple[Any, str]] = {
    "delta of 0": (wrong(delta=0.0), r"delta must be a finite number greater than 0; got 0\.0"),
    "delta of 1": (wrong(delta=1), r"delta must be in \(0, 1\), a probability such as 0\.05; got 1"),
    "delta in percent": (wrong(delta=5), r"delta must be in \(0, 1\)"),
    "no candidates": (wrong(candidates=0), "candidates must be an integer of at least 1; got 0"),
    "half a candidate": (wrong(candidates=1.5), "candidates must be an integer of at least 1; got 1.5"),
    "more candidates than examples": (wrong(candidates=41), "candidates=41 were compared on 40 held-out examples"),
    "an unknown loss": (wrong(loss="accuracy"), "loss must be one of 'zero_one', .*; got 'accuracy'"),
    "a seed below 0": (wrong(seed=-1), "seed must be an integer of at least 0"),
    "no examples": (lambda: promised(head(), []), "The held-out data is empty: expected labeled examples"),
    "both rules": (wrong(max_error=0.1, coverage=0.9), "max_error and coverage are two promises"),
    "an error of 1": (wrong(max_error=1.0), r"max_error must be in \(0, 1\)"),
    "too few for a threshold": (wrong(max_error=0.05), "needs at least 160 held-out examples to judge a threshold"),
    "too few for sets": (
        wrong(coverage=0.99),
        r"coverage=0.99 needs at least 368 held-out examples .* and 40 are here",
    ),
    "a rule of several models": (wrong(max_error=0.1, candidates=[head()]), "confidence of one model in its classes"),
    "a rule of own errors": (wrong(max_error=0.1, error_fn=lambda m, b: 0), "leave out error_fn"),
    "two losses": (
        wrong(loss="brier", error_fn=lambda m, b: b["labels"].float()),
        "loss='brier' and error_fn are two losses",
    ),
    "a loss above 1": (
        wrong(error_fn=lambda m, b: 2 * torch.ones(10)),
        r"error_fn must return errors in \[0, 1\]; batch 0 has 2",
    ),
    "a loss that is no number": (wrong(error_fn=lambda m, b: torch.full((10,), math.nan)), "batch 0 has nan"),
    "an error between": (
        wrong(loss="zero_one", error_fn=lambda m, b: torch.full((10,), 0.5)),
        "With loss='zero_one', error_fn must return 0 or 1; batch 0 has 0.5. Leave loss out",
    ),
    "one error for all": (wrong(error_fn=lambda m, b: torch.zeros(())), r"expected shape \(10,\) for batch 0"),
    "a loss that trains": (wrong(loss_fn=lambda m, b: (0, 1)), "promise\\(\\) takes no loss_fn, which trains a model"),
    "the same examples": (
        wrong(training_data=held_out(40, 1, 7)),
        "40 of the 40 held-out examples also stand in the training data",
    ),
    "no training data": (wrong(training_data=[]), "The training data is empty: expected what the model was trained on"),
    "copies": (
        lambda: promised(head(), held_out(40, 1, 10) * 2),
        "40 of the 80 held-out examples equal an earlier one.*assume_independent=True",
    ),
    "batches without examples": (
        lambda: promised(head(), [{name: value[:0] for name, value in held_out(4, 1)[0].items()}]),
        "The held-out data is empty: expected labeled examples",
    ),
    "a threshold of another loss": (
        lambda: promised(head(), held_out(400, 1), max_error=0.3, loss="brier"),
        "max_error limits the share of wrong answers, and loss='brier' counts something else",
    ),
    "training data of other inputs": (
        wrong(training_data=[{"text": ["a", "b"], "labels": torch.tensor([0, 1])}]),
        r"held-out examples have the inputs \['features'\], and the training data has \['text'\]: nobody can see",
    ),
    "training data without names": (wrong(training_data=["a", "b"]), "the training data has none with a name"),
    "a taken name": (wrong(candidates={"the model": head()}), "'the model' is the name of the model itself"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_not_be_promised_is_a_sentence(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_kinds() -> None:
    with pytest.raises(TypeError, match=r"candidates must be their number, or the other candidates .* got str, Head"):
        promised(head(), held_out(40, 1), candidates={"a": "./checkpoint-1", "b": head()})
    with pytest.raises(TypeError, match=r"candidates must be their number.*got str. Load models first"):
        promised(head(), held_out(40, 1), candidates="all")
    with pytest.raises(TypeError, match=r"error_fn must be a function error_fn\(model, batch\).*got int"):
        promised(head(), held_out(40, 1), error_fn=3)
    with pytest.raises(TypeError, match="trainer_state must be a folder or a file; got int"):
        promised(head(), held_out(40, 1), trainer_state=3)
    with pytest.raises(TypeError, match=r"model must be a loaded model.*got str"):
        promised("./model", held_out(40, 1))
    with pytest.raises(TypeError, match=r"Did you mean 'max_error'?"):
        promised(head(), held_out(40, 1), max_eror=0.1)
    with pytest.raises(TypeError, match=r"data must be a DataLoader, a dataset, or an iterable of batches; got str"):
        promised(head(), "test.csv")


def test_independence_is_vouched_for() -> None:
    data = held_out(40, 1, 10) * 2
    result = promised(head(), data, assume_independent=True)
    assert result.num_examples == 80 and any("they count as drawn independently" in note for note in result.notes)


def test_nothing_is_promised_where_all_is_wrong() -> None:
    data = [{**batch, "labels": 1 - head()(batch["features"])["logits"].argmax(-1)} for batch in held_out(40, 1)]
    result: Promise = promised(head(), data)
    assert result.error_bound == 1.0 and "is promised nothing about its error on new examples" in result.statement
    limited = promised(head(), data, max_error=0.3)
    assert limited.threshold is None and "has no confidence from which on at most 30 %" in limited.statement
    assert any("No threshold can be promised" in note for note in limited.notes)
