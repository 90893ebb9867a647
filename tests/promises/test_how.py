"""Training and promising in one: what is trained, tested, counted and returned."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from certificates import Head, trained
from promised import DELTA, DRAWS, MOST, NUM_ROWS, columns, drawn, fit, rows, start
from promised import trained_promise as promised
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_pacgen.maths.held_out_bounds import exact_error_bound
from hf_pacgen.promises.expected import progressive_bound
from hf_pacgen.promises.how import train_and_promise


def wrong(model: Any, part: Any) -> int:
    features, labels = columns(part)
    with torch.no_grad():
        return int((model(features)["logits"].argmax(-1) != labels).sum())


def keys(part: Any) -> set[tuple[float, ...]]:
    return {tuple(row) for row in part["features"][:]}


def test_a_split_trains_on_one_part_and_tests_on_the_other() -> None:
    seen: list[Any] = []

    def train(model: nn.Module, part: Any) -> None:
        seen.append(part)
        fit(model, part)

    model = start()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = train_and_promise(model, rows(), train, train_fraction=0.6, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    (part,), (rest,) = seen, found.tested_on
    assert (len(part), len(rest)) == (72, 48) and not keys(part) & keys(rest)
    assert found.promise.num_errors == wrong(found.model, rest)
    assert found.promise.error_bound == exact_error_bound(wrong(found.model, rest), 48, 0.05)
    assert found.cost == pytest.approx(0.6) and found.probabilities == (1.0,)
    assert keys(promised(seed=1).tested_on[0]) != keys(promised(seed=2).tested_on[0])


@pytest.mark.parametrize("warm_start", [True, False])
def test_progressive_tests_each_block_before_it_trains_on_it(warm_start: bool) -> None:
    seen: list[tuple[set[Any], bool]] = []
    fresh = start().linear.weight.detach()

    def train(model: nn.Module, part: Any) -> None:
        seen.append((keys(part), torch.equal(model.get_parameter("linear.weight"), fresh)))
        fit(model, part)

    found = promised(train, how="progressive", warm_start=warm_start)
    assert [len(part) for part in found.tested_on] == [22] * 4
    # the first two trainings are of half of the first part, for a guess of the error, and of all of it
    assert [anew for _, anew in seen] == [True, not warm_start, *([not warm_start] * 3)]
    for number, part in enumerate(found.tested_on):
        assert not any(keys(part) & learned for learned, _ in seen[: number + 2])
        if number < 3:
            assert keys(part) <= seen[number + 2][0]
    sizes = [len(learned) for learned, _ in seen]
    assert tuple(sizes) == found.trained_examples and found.cost == sum(sizes) / NUM_ROWS
    assert found.cost < (1.7 if warm_start else 2.6)
    errors = [wrong(found.load(number), part) for number, part in enumerate(found.tested_on)]
    assert found.promise.num_errors == sum(errors) and found.promise.num_examples == 88
    statement = found.promise.statement
    assert "one of 4 models, drawn at random, Head errs on" in statement  # and no weights of one of them
    assert "It does not hold if a model was trained or chosen by its own block" in statement
    assert len({found.draw(seed) for seed in range(40)}) == 4


def test_a_guess_of_the_error_is_not_asked_of_the_tested_blocks() -> None:
    trained_on: list[int] = []

    def train(model: nn.Module, part: Any) -> None:
        trained_on.append(len(part))
        fit(model, part)

    found = promised(train, how="progressive", expected_error=0.2, warm_start=False)
    assert trained_on == [32, 54, 76, 98]  # and no half of the first part
    errors = [wrong(found.load(number), part) for number, part in enumerate(found.tested_on)]
    assert found.promise.error_bound == progressive_bound(errors, 22, 0.05, 0.2)[0]


def test_all_adds_the_disagreement() -> None:
    models: list[nn.Module] = []

    def train(model: nn.Module, part: Any) -> None:
        fit(model, part)
        models.append(model)

    others = rows(300, seed=5)
    found = promised(train, how="all", unlabeled=others)
    part, whole = models
    assert found.model is whole and found.trained_examples == (60, 120)
    features, _ = columns(others)
    with torch.no_grad():
        differ = int((part(features)["logits"].argmax(-1) != whole(features)["logits"].argmax(-1)).sum())
    errors = wrong(part, found.tested_on[0])
    assert found.promise.error_bound == exact_error_bound(errors, 60, 0.025) + exact_error_bound(differ, 300, 0.025)
    assert "the model of all examples Head (weights" in found.promise.statement
    assert "or the unlabeled inputs depend on each other" in found.promise.statement
    unlabeled = others.remove_columns("labels")
    assert promised(how="all", unlabeled=unlabeled).promise.error_bound == found.promise.error_bound


def test_a_trainer_is_run_and_its_model_counts(tmp_path: Path) -> None:
    def factory(model: nn.Module, part: Any) -> Trainer:
        args = TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=2,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        return Trainer(model=model, args=args, train_dataset=part)

    found = promised(factory)
    assert not torch.equal(found.model.get_parameter("linear.weight"), start().linear.weight)
    assert list(found.weights[0]) == ["linear.weight", "linear.bias"]

    def run(model: nn.Module, part: Any) -> Trainer:
        trainer = factory(model, part)
        trainer.train()
        return trainer

    again = promised(run)  # not trained twice
    assert torch.equal(again.model.get_parameter("linear.weight"), found.model.get_parameter("linear.weight"))


@pytest.mark.parametrize("how", ["split", "progressive", "all"])
def test_promises_fail_no_more_often_than_delta(how: str) -> None:
    # the true error of a head w: the angle between w and the rule, known by many examples
    features, labels = drawn(20_000, 10**6)
    failed = 0
    everything = drawn(40 * DRAWS // 4, 77)
    for draw in range(DRAWS // 4):
        part = torch.utils.data.TensorDataset(*(column[40 * draw : 40 * draw + 40] for column in everything))
        table = Rows(part)
        found = train_and_promise(
            Head(3),
            table,
            quick,
            how=how,
            delta=DELTA,
            unlabeled=Rows(torch.utils.data.TensorDataset(*drawn(40, 5000 + draw))),
            seed=draw,
            progress=False,
            batch_size=64,
        )
        with torch.no_grad():
            true = 0.0
            for number, chance in enumerate(found.probabilities):
                true += chance * float((found.load(number)(features)["logits"].argmax(-1) != labels).float().mean())
        failed += found.promise.error_bound < true
    most = DELTA + 2 * math.sqrt(DELTA * (1 - DELTA) / (DRAWS // 4))
    assert most > MOST  # fewer draws here, since each trains models
    assert failed / (DRAWS // 4) <= most


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Examples of a map-style dataset."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        features, label = self.data[index]
        return {"features": features, "labels": label}


def quick(model: nn.Module, part: Any) -> None:
    found = [part[i] for i in range(len(part))]
    fit_to = torch.stack([row["features"] for row in found]), torch.stack([row["labels"] for row in found])
    trained(model, *fit_to, steps=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"how": "best"}, ValueError, r"how must be one of 'split', 'progressive', 'all'; got 'best'\."),
        ({"how": "all"}, ValueError, r"how='all' needs unlabeled="),
        ({"how": "all", "unlabeled": datasets.Dataset.from_dict({})}, ValueError, r"how='all' needs unlabeled="),
        ({"delta": 0.0}, ValueError, r"delta must be in \(0, 1\)"),
        ({"train": 3}, TypeError, r"train must be a function train\(model, part\); got int\."),
        ({"train": lambda model, part: 5}, TypeError, r"train must return nothing .* or a Trainer; got int\."),
        ({"train_fraction": 1.0}, ValueError, r"train_fraction must be in \(0, 1\), or None to leave it.*got 1\.0"),
        ({"train_fraction": 0.001}, ValueError, r"A share of 0\.001 of 120 examples leaves nothing"),
        ({"how": "progressive", "blocks": 119}, ValueError, r"120 examples are too few for 119 blocks"),
        ({"how": "progressive", "expected_error": 0.0}, ValueError, r"expected_error must be in \(0, 1\), or None"),
        ({"seed": 2**64}, ValueError, r"seed must be an integer of at least 0 and less than 2\*\*64"),
        ({"seed": True}, ValueError, r"seed must be an integer.*True"),
        ({"expected_error": "low"}, ValueError, r"expected_error must be in \(0, 1\), or None.*'low'"),
        ({"delta": "a"}, ValueError, r"delta must be in \(0, 1\).*'a'"),
        ({"warm_start": "no"}, ValueError, r"warm_start must be True or False; got 'no'"),
        ({"how": "progressive", "train_fraction": 0.5}, ValueError, "how='progressive' heeds no train_fraction"),
        ({"data": [{"features": torch.ones(2, 3)}]}, TypeError, r"one example a row and a length.*; got list\."),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        promised(**options)


def test_a_model_must_be_one() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch module; got str\."):
        train_and_promise("model", rows(), fit)  # type: ignore[arg-type]


def test_copies_in_both_parts_are_refused() -> None:
    twice = datasets.concatenate_datasets([rows(40), rows(40)])
    with pytest.raises(ValueError, match=r"also stand in the training data|equal an earlier one"):
        promised(data=twice)


def test_each_model_is_loaded_as_it_was() -> None:
    def train(model: nn.Module, part: Any) -> None:
        # the bias from the first training on, the weight only where there is much data
        model.get_parameter("linear.weight").requires_grad_(len(part) > 60)
        fit(model, part)
        seen.append({name: value.detach().clone() for name, value in model.state_dict().items()})

    seen: list[dict[str, torch.Tensor]] = []
    found = promised(train, how="progressive", warm_start=False, expected_error=0.2)
    fresh = start().state_dict()
    assert torch.equal(seen[0]["linear.weight"], fresh["linear.weight"])
    assert not torch.equal(seen[-1]["linear.weight"], fresh["linear.weight"])
    for number in (0, 3, 1, 0):
        loaded = found.load(number).state_dict()
        assert all(torch.equal(value, seen[number][name]) for name, value in loaded.items())


def test_unlabeled_inputs_that_trained_the_models_are_refused() -> None:
    with pytest.raises(ValueError, match=r"120 of the 120 unlabeled inputs also stand in the training data"):
        promised(how="all", unlabeled=rows())


@pytest.mark.parametrize("how", ["split", "progressive"])
def test_a_few_equal_inputs_may_be_vouched_for(how: str) -> None:
    features, labels = drawn(NUM_ROWS, 0)
    features[-1] = features[0]
    data = datasets.Dataset.from_dict({"features": features.tolist(), "labels": labels.tolist()})
    seeds = [seed for seed in range(12) if _refused(data, how, seed)]
    assert seeds  # where the two lie in different parts
    found = promised(data=data, how=how, seed=seeds[0], assume_independent=True)
    assert found.promise.error_bound < 1


def _refused(data: Any, how: str, seed: int) -> bool:
    try:
        promised(data=data, how=how, seed=seed)
    except ValueError as error:
        assert "pass assume_independent=True" in str(error) or "Remove these" in str(error)
        return "pass assume_independent=True" in str(error)
    return False
