"""The metric of evaluate: its numbers, its arguments, its documentation, and its place in a Trainer."""

from __future__ import annotations

import doctest
import inspect
import logging
import math
import re
import sys
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy
import pytest
import saved_models
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments, set_seed

import hf_pacgen
from hf_pacgen import PACGenResult, RelativeSharpnessConfig, ScoreConfig, pacgen, relative_sharpness
from hf_pacgen.data.batches import Batches
from hf_pacgen.results.relative_sharpness import RelativeSharpness

README = Path(hf_pacgen.metric_path()) / "README.md"
KEYS = {
    "pacgen",
    "pacgen_per_parameter",
    "pacgen_kl",
    "pacgen_kl_per_parameter",
    "pacgen_kl_excess",
    "pacgen_kl_curvature",
    "pacgen_active_fraction",
    "pacgen_kl_active_fraction",
    "hessian_trace",
    "hessian_lipschitz",
}
QUICK: dict[str, Any] = {"lipschitz_directions": 0, "rho": 1.5, "estimator": "gauss_newton", "progress": False}

# evaluate's own form of a metric's tests: inputs with the results that they must give
test_cases: list[dict[str, Any]] = [
    {  # the curvature branch: log(0.1 sqrt(400)) = log 2 and log(0.1 sqrt(300 * 400 / 3)) = log 20
        "inputs": {
            "weights": [0.0],
            "hessian_diagonal": [400.0],
            "hessian_lipschitz": 0.0,
            "eta": 300.0,
            "epsilon": 0.1,
        },
        "result": {"pacgen": math.log(2), "pacgen_kl": math.log(20), "pacgen_active_fraction": 1.0},
    },
    {  # saturated, and a negative curvature: log((1 + 0.2) / 0.2), log((0 + 0.1) / 0.1) = 0
        "inputs": {
            "weights": [1.0, 0.0],
            "hessian_diagonal": [1.0, -9.0],
            "hessian_lipschitz": 0.0,
            "eta": 1.0,
            "epsilon": 0.1,
        },
        "result": {"pacgen": math.log(6), "pacgen_active_fraction": 0.0, "pacgen_kl_active_fraction": 0.0},
    },
    {  # rho: m = 4, N = 0.1 and rho sqrt(m) N = 400, so Psi/m = log(0.1 sqrt(400)); K with 1/9 of it
        "inputs": {
            "weights": numpy.zeros((2, 2)),
            "hessian_diagonal": numpy.zeros((2, 2)),
            "hessian_lipschitz": 2000.0,
            "num_training_examples": 9,
            "epsilon": 0.1,
        },
        "result": {
            "pacgen": 4 * math.log(2),
            "pacgen_per_parameter": math.log(2),
            "pacgen_kl_per_parameter": math.log(2),
            "hessian_lipschitz": 2000.0,
        },
    },
    {  # gamma alone: N = 0.5 |w| = 1, so log((2 + 1) max(sqrt(49), 1))
        "inputs": {
            "weights": {"a": torch.tensor([2.0])},
            "hessian_diagonal": {"a": [49]},
            "hessian_lipschitz": torch.tensor(0.0),
            "gamma": 0.5,
            "epsilon": 0.0,
            "eta": 3,
        },
        "result": {"pacgen": math.log(21), "pacgen_kl": math.log(21), "hessian_trace": 49.0},
    },
]


@pytest.fixture(scope="module")
def metric() -> Any:
    assert hf_pacgen.register() is not None
    return evaluate.load("pacgen")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_models.bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def model(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.fixture(scope="module")
def examples() -> datasets.Dataset:
    generator = numpy.random.default_rng(0)
    rows = [generator.integers(4, 16, size=6).tolist() for _ in range(10)]
    return datasets.Dataset.from_dict({"input_ids": rows, "labels": [sum(row) % 2 for row in rows]})


# ------------------------------------------------------------------------------------------------ its numbers


@pytest.mark.parametrize("case", test_cases)
def test_results(case: dict[str, Any], metric: Any) -> None:
    results = metric.compute(**case["inputs"])
    assert results.keys() == KEYS
    assert {key: results[key] for key in case["result"]} == pytest.approx(case["result"], abs=1e-12)


def test_without_the_number_of_examples_the_score_comes_without_its_complexity(
    metric: Any, caplog: pytest.LogCaptureFixture
) -> None:
    numbers: dict[str, Any] = {"weights": [0.5, -1.0], "hessian_diagonal": [400.0, 100.0], "hessian_lipschitz": 3.0}
    fresh = evaluate.load("pacgen")
    bare, full = fresh.compute(**numbers), metric.compute(**numbers, num_training_examples=1000)
    left_out = {key for key in full if key.startswith("pacgen_kl")}
    assert bare == {key: value for key, value in full.items() if key not in left_out} and "pacgen" in bare
    assert "pacgen_kl" in left_out
    assert any("K(η) is left out: eta='n'" in record.getMessage() for record in caplog.records)


def test_arrays_of_any_kind_give_the_same(metric: Any) -> None:
    w, h = [[0.5, -1.0], [2.0, 0.0]], [[400.0, 0.0], [-3.0, 900.0]]
    kinds = [
        (w, h),
        (numpy.array(w), numpy.array(h)),
        (torch.tensor(w, requires_grad=True), torch.tensor(h)),
        ({"a": w[0], "b": w[1]}, {"b": h[1], "a": numpy.array(h[0])}),
        ([torch.tensor(row) for row in w], [torch.tensor(row) for row in h]),
    ]
    expected, *others = [
        metric.compute(weights=a, hessian_diagonal=b, hessian_lipschitz=2.0, eta=50.0, epsilon=0.1) for a, b in kinds
    ]
    for other in others:
        assert other == pytest.approx(expected, rel=1e-12)


def test_a_loaded_model_gives_what_pacgen_gives(metric: Any, model: Any, examples: datasets.Dataset) -> None:
    config = ScoreConfig(lipschitz_directions=0, rho=1.5, estimator="gauss_newton", seed=3)  # type: ignore[arg-type]
    expected = pacgen(model, examples, config=config, batch_size=4, progress=False)
    assert metric.compute(model=model, data=examples, batch_size=4, seed=3, **QUICK) == expected.metrics()
    assert isinstance(metric.result, PACGenResult)
    assert metric.result.by_module == expected.by_module


def test_a_folder_gives_what_its_model_gives(metric: Any, model: Any, folder: Path, examples: datasets.Dataset) -> None:
    loader = list(Batches(examples, model=model, batch_size=10))
    expected = metric.compute(model=model, data=[batch for _, batch in loader], **QUICK)
    for name in (folder, str(folder)):
        assert metric.compute(model=name, data=examples, batch_size=10, **QUICK) == pytest.approx(expected, rel=1e-6)


def test_data_by_name_is_tokenized(metric: Any, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text("text,label\ngood movie,1\nbad food,0\nvery bad,0\n")
    results = metric.compute(model=folder, data=file, **QUICK)
    assert results["pacgen"] > 0
    assert metric.result.num_examples == 3


def test_a_model_by_name_without_all_of_its_parameters_is_refused(
    metric: Any, folder: Path, examples: datasets.Dataset, tmp_path: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    weights = {name: value for name, value in model.state_dict().items() if name != "classifier.weight"}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks classifier.weight, which sequence-classification needs: made at rand"):
        evaluate.load(hf_pacgen.metric_path()).compute(model=tmp_path, data=examples, **QUICK)


# ------------------------------------------------------------------------------------------------ its arguments


def test_the_settings_are_those_of_the_score_with_their_defaults(metric: Any) -> None:
    parameters = inspect.signature(metric._compute).parameters
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters.values())
    defaults = ScoreConfig()
    fields = ScoreConfig.__dataclass_fields__
    assert {name: parameters[name].default for name in fields} == {name: getattr(defaults, name) for name in fields}
    described = metric.inputs_description
    assert [name for name in parameters if not re.search(rf"\b{name}\b", described)] == []
    card = README.read_text(encoding="utf-8")
    assert [name for name in (*parameters, *KEYS) if not re.search(rf"[*`]{name}[*`]", card)] == []


def test_card_and_description_say_of_every_key_what_its_field_says(metric: Any) -> None:
    card = README.read_text(encoding="utf-8")
    known = [fact for fact in PACGenResult.facts().values() if fact.key]
    rise = RelativeSharpness.facts()["relative_sharpness"]
    rows = [f"| `{fact.key}` | {fact.span} | {fact.label}: {fact.meaning} |" for fact in (*known, rise)]
    assert re.findall(r"^\| `.*\|$", card, re.MULTILINE) == rows
    assert [(fact.unit, fact.better) for fact in known] == 6 * [("nats", "lower")] + 4 * [("", None)]
    assert all(f"    {fact.key}: {fact.meaning}" in metric.inputs_description for fact in (*known, rise))


def test_what_limits_the_numbers_is_told_once(metric: Any, caplog: pytest.LogCaptureFixture) -> None:
    fresh = evaluate.load("pacgen")
    for _ in range(3):
        fresh.compute(weights=[1.0], hessian_diagonal=[1.0], hessian_lipschitz=0.0, eta=1.0)
    told = [r for r in caplog.records if "saturated" in r.getMessage() and r.levelno >= logging.WARNING]
    assert len(told) == 1 and "Read kl_curvature" in told[0].getMessage()  # no second step to take beside it


NUMBERS: dict[str, Any] = {"weights": [1.0, 2.0], "hessian_diagonal": [1.0, 2.0], "hessian_lipschitz": 1.0, "eta": 9}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hessian_diagonal": [1.0]}, r"same shapes; 'weights' has \(2,\) and \(1,\)"),
        ({"hessian_diagonal": {"a": [1.0, 2.0]}}, "same names; these are in one only: .*'a'"),
        ({"weights": [1.0, math.nan]}, "weights must be finite; 'weights' contains NaN"),
        ({"hessian_diagonal": [1.0, math.inf]}, "hessian_diagonal must be finite"),
        ({"weights": ["a", "b"]}, "weights must be a tensor, an array or a list of numbers"),
        ({"weights": [[1.0], [1.0, 2.0]]}, "weights must be a tensor, an array or a list of numbers"),
        ({"weights": [1j, 2.0]}, "weights must hold real numbers; got torch.complex128"),
        ({"weights": [], "hessian_diagonal": []}, "weights has no numbers in it"),
        ({"hessian_lipschitz": -1.0}, "hessian_lipschitz must be a finite number >= 0; got -1.0"),
        ({"hessian_lipschitz": "much"}, "hessian_lipschitz must be a finite number; got 'much'"),
        ({"hessian_lipschitz": torch.ones(2)}, "hessian_lipschitz must be a finite number; got tensor"),
        ({"hessian_lipschitz": None}, r"Not given: hessian_lipschitz\. A score needs model= and data=, or all of"),
        ({"hessian_diagonal": None, "hessian_lipschitz": None}, "Not given: hessian_diagonal, hessian_lipschitz"),
        ({"relative_sharpness": True}, "relative_sharpness=True is measured on a model: give model= and data="),
        ({"relative_sharpness": 1}, "relative_sharpness must be True or False; got 1"),
        ({"eta": 0}, "eta must be a positive number"),
        ({"gamma": -1}, "gamma must be a finite number"),
        ({"passes": 2, "seed": 1}, "passes, seed cannot be heeded without a model"),
        ({"data": []}, "Both a model or data and weights, hessian_diagonal, hessian_lipschitz were given"),
        ({"predictions": [1]}, "PACGen takes no predictions and no references"),
        ({"references": [1]}, "PACGen takes no predictions and no references"),
    ],
)
def test_bad_numbers(changes: dict[str, Any], message: str, metric: Any) -> None:
    with pytest.raises(ValueError, match=message):
        metric.compute(**{**NUMBERS, **changes})


def test_without_the_number_of_examples_there_is_the_score_and_no_complexity(
    metric: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bare = {name: value for name, value in NUMBERS.items() if name != "eta"}
    with_it = metric.compute(**bare, num_training_examples=50)
    without = metric.compute(**bare)
    assert without == {key: value for key, value in with_it.items() if "kl" not in key}
    assert without.keys() < with_it.keys() == KEYS
    fresh = evaluate.load(hf_pacgen.metric_path())
    fresh.compute(weights=[1.0], hessian_diagonal=[1.0], hessian_lipschitz=0.0)
    assert "Give num_training_examples=, or eta= a number" in caplog.text


def test_relative_sharpness_joins_the_numbers_when_asked(model: Any, folder: Path, examples: datasets.Dataset) -> None:
    metric: Any = evaluate.load(hf_pacgen.metric_path())
    plain = metric.compute(model=model, data=examples, batch_size=2, seed=3, max_examples=8, **QUICK)
    assert plain.keys() == KEYS and metric.relative_sharpness is None
    config = RelativeSharpnessConfig(max_examples=8, seed=3)
    expected = relative_sharpness(model, examples, config=config, batch_size=2, progress=False)
    asked: dict[str, Any] = {"data": examples, "batch_size": 2, "seed": 3, "max_examples": 8, **QUICK}
    found = metric.compute(model=model, relative_sharpness=True, **asked)
    assert found == plain | {"pacgen_relative_sharpness": expected.relative_sharpness}
    kept: Any = metric.relative_sharpness
    assert kept.means == expected.means
    by_name = metric.compute(model=folder, relative_sharpness=True, **asked)
    assert by_name["pacgen_relative_sharpness"] == pytest.approx(expected.relative_sharpness, rel=1e-3)


def test_the_name_is_pacgen_however_it_is_loaded(metric: Any) -> None:
    path = hf_pacgen.metric_path()
    for loaded in (metric, *(evaluate.load(p) for p in (path, f"{path}/pacgen.py", "pacgen"))):
        assert loaded.name == loaded.info.module_name == "pacgen"
    both = evaluate.combine([metric, evaluate.load(path)])
    assert set(both.evaluation_module_names) == {"pacgen"}


def test_an_unknown_keyword(metric: Any) -> None:
    with pytest.raises(TypeError, match="'gama'"):
        metric.compute(**NUMBERS, gama=0.1)


def test_a_model_or_data_alone(metric: Any, model: Any, examples: datasets.Dataset) -> None:
    with pytest.raises(ValueError, match="data= is missing"):
        metric.compute(model=model)
    with pytest.raises(ValueError, match="model= is missing"):
        metric.compute(data=examples)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_a_model_id_that_does_not_exist(name: str, metric: Any, examples: datasets.Dataset) -> None:
    with pytest.raises(ValueError, match=f"The model '{name}' is no folder here, and could not be loaded from the"):
        metric.compute(model=name, data=examples)


def test_a_folder_that_does_not_exist(metric: Any, examples: datasets.Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist\. Expected a folder written by save_pretrained"):
        metric.compute(model=tmp_path / "nothing", data=examples)


def test_a_model_without_a_head(metric: Any, examples: datasets.Dataset, tmp_path: Path) -> None:
    saved_models.bert(tmp_path, head=False)
    with pytest.raises(ValueError, match="has no head for one of sequence-classification"):
        metric.compute(model=tmp_path, data=examples)


def test_data_without_labels(metric: Any, model: Any, folder: Path, examples: datasets.Dataset) -> None:
    for subject in (model, folder):
        with pytest.raises(ValueError, match="labels"):
            metric.compute(model=subject, data=examples.remove_columns("labels"), **QUICK)


# ------------------------------------------------------------------------------------------------ its documentation


def test_the_doctest_of_the_description_runs(metric: Any) -> None:
    module = sys.modules[type(metric).__module__]
    results = doctest.testmod(module, raise_on_error=True)
    assert results.attempted >= 4 and results.failed == 0
    assert "Examples:" in str(type(metric).__doc__) and "Examples:" in metric.compute.__doc__


def test_the_code_of_the_card_runs(
    metric: Any,
    model: Any,
    folder: Path,
    examples: datasets.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From top to bottom, with the names that it takes for granted."""
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("path/to/model")
    saved_models.tokenizer().save_pretrained("path/to/model")
    datasets.Dataset.from_dict({"text": ["good", "bad"], "label": [1, 0]}).to_parquet("train.parquet")
    names = {
        "model": model,
        "train_dataset": examples,
        "train_subset": examples.select(range(4)),
        "train": examples,
        "test": examples,
        "w": torch.ones(3),
        "h": torch.ones(3),
        "rho": 1.0,
    }
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        if block.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(block, names, "card", None, None)
            assert doctest.DocTestRunner().run(test).failed == 0
        else:
            exec(compile(block, str(README), "exec"), names)


# ------------------------------------------------------------------------------------------------ in a Trainer


def test_metric_for_best_model(metric: Any, model: Any, examples: datasets.Dataset, tmp_path: Path) -> None:
    """Though it is not advised: the checkpoint with the lowest K(η) is loaded at the end."""
    set_seed(0)
    settings = {**QUICK, "num_training_examples": len(examples), "epsilon": 0.1}

    def compute_metrics(output: Any) -> dict[str, float]:
        return metric.compute(model=model, data=examples.select(range(4)), **settings)

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=4,
            learning_rate=0.05,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="pacgen_kl",
            greater_is_better=False,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=examples,
        eval_dataset=examples,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    history = {row["step"]: row["eval_pacgen_kl"] for row in trainer.state.log_history if "eval_pacgen_kl" in row}
    best = min(history, key=lambda step: history[step])
    assert len(set(history.values())) == 4 and best != max(history)
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert trainer.state.best_metric == history[best]
    assert compute_metrics(None)["pacgen_kl"] == pytest.approx(history[best], rel=1e-6)
