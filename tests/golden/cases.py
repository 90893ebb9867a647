"""All cases by name.  Those of one process run here; those of two run together, one pair of processes for a group."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from launch import on_two_processes

from golden import measures, shards, training
from golden.subjects import MODELS
from golden.values import Stored, stored

Case = Callable[[], dict[str, Any]]
DTYPES = {"float64": torch.float64, "float32": torch.float32}
METHODS = ("auto", "finite_difference", "reverse_over_reverse", "forward_over_reverse")
ESTIMATORS = ("hutchinson", "gauss_newton", "blend")
DISTRIBUTIONS = ("normal", "uniform", "truncated_normal")


def one_process() -> dict[str, Case]:
    """Everything that a process does alone."""
    found: dict[str, Case] = {}
    for name in MODELS:
        for dtype in DTYPES:
            found |= {f"{case}/{name}/{dtype}": run for case, run in _measures(name, DTYPES[dtype])}
        found |= {f"{case}/{name}/float64": run for case, run in _measures_in_float64(name)}
    found |= _of_bert()
    for way in ("trainer", "callback"):
        found |= {f"training/{way}/{case}": run for case, run in _training(way)}
    return found


def _measures(name: str, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    """What is measured of every model in both types."""
    yield "score", partial(measures.score, name, dtype)
    for estimator in ESTIMATORS:
        yield f"diagonal-{estimator}", partial(measures.diagonal, name, dtype, estimator=estimator)
    for method in METHODS:
        yield f"product-{method}", partial(measures.product, name, dtype, method=method)
    yield "rho", partial(measures.lipschitz, name, dtype)
    yield "expected-normal", partial(measures.expected, name, dtype)
    yield "worst-case", partial(measures.worst, name, dtype)
    for distribution in DISTRIBUTIONS:
        yield f"perturbed-{distribution}", partial(measures.noisy, name, dtype, distribution=distribution)


def _measures_in_float64(name: str) -> Iterator[tuple[str, Case]]:
    """What is measured in float64 alone, to keep the net quick."""
    dtype = torch.float64
    yield "diagonal-exact", partial(measures.diagonal, name, dtype, estimator="exact")
    yield "diagonal-standard-error", partial(measures.diagonal, name, dtype, standard_error=True)
    yield "spectrum", partial(measures.spectrum, name, dtype)
    for distribution in DISTRIBUTIONS[1:]:
        yield f"expected-{distribution}", partial(measures.expected, name, dtype, distribution=distribution)
    yield "certificate", partial(measures.certificate, name, dtype)
    yield "certificate-refined", partial(measures.certificate, name, dtype, refine_steps=3)


def _of_bert() -> dict[str, Case]:
    """Settings and kinds of data that one model is enough for."""
    dtype = torch.float64
    score, certificate = partial(measures.score, "bert", dtype), partial(measures.certificate, "bert", dtype)
    spectrum, expected = partial(measures.spectrum, "bert", dtype), partial(measures.expected, "bert", dtype)
    return {
        "score-of-tensors": measures.score_of_tensors,
        "score-settings/bert": partial(score, gamma=0.05, epsilon=0.2, eta=100.0, passes=2, seed=5),
        "score-given-rho/bert": partial(score, rho=0.3, lipschitz_directions=0, num_training_examples=1000),
        "score-few-examples/bert": partial(score, max_examples=6),
        "score-loader/bert": partial(measures.score_of_data, "loader", dtype),
        "score-dataset/bert": partial(measures.score_of_data, "dataset", dtype, max_examples=7, seed=2),
        "product-displacement/bert": partial(
            measures.product, "bert", torch.float32, method="finite_difference", displacement=0.01
        ),
        "rho-two-batches/bert": partial(measures.lipschitz, "bert", dtype, lipschitz_batches=2, seed=4),
        "spectrum-smallest/bert": partial(spectrum, which="smallest", keep_vectors=True),
        "spectrum-magnitude/bert": partial(spectrum, which="magnitude", iterations=12),
        "expected-by-name/bert": partial(expected, by_name=True, antithetic=False),
        "expected-tolerance/bert": partial(expected, draws=24, tolerance=0.4),
        "perturbed-by-name/bert": partial(measures.noisy, "bert", dtype, by_name=True),
        "certificate-float32/bert": partial(measures.certificate, "bert", torch.float32, refine_steps=3),
        "certificate-hoeffding/bert": partial(certificate, bound="hoeffding"),
        "certificate-uniform/bert": partial(certificate, distribution="uniform", refine_steps=2, eta=300.0),
        "certificate-truncated/bert": partial(certificate, distribution="truncated_normal", eta=300.0),
        "certificate-by-module/bert": partial(certificate, prior_groups="module", eta=300.0),
        "certificate-some-weights/bert": partial(certificate, parameters=["classifier.*"], estimator="blend"),
        "certificate-trained-prior/bert": partial(measures.certificate_of_a_trained_prior, dtype),
    }


def _training(way: str) -> Iterator[tuple[str, Case]]:
    bert, llama = (partial(training.train, way, name) for name in ("bert", "llama"))
    for case, settings in training.SETTINGS.items():
        yield f"{case}/bert/float64", partial(bert, torch.float64, **settings)
        yield f"{case}/llama/float64", partial(llama, torch.float64, **settings)
    for case, settings in training.OF_BERT.items():
        yield f"{case}/bert/float64", partial(bert, torch.float64, **settings)
    yield "price/llama/float32", partial(llama, torch.float32)
    for case in ("hutchinson", "estimated_rho"):
        yield f"{case}/bert/float32", partial(bert, torch.float32, **training.SETTINGS[case])
    # float32, which an embedding of this size would have
    yield "large-embedding", partial(training.train, way, "large-embedding", torch.float32, max_steps=4)
    if way == "trainer":
        yield "antithetic/bert/float64", partial(bert, torch.float64, antithetic=True)
        yield "antithetic/llama/float64", partial(llama, torch.float64, antithetic=True)
        accumulated = {"antithetic": True, "gradient_accumulation_steps": 2}
        yield "antithetic-accumulated/bert/float64", partial(bert, torch.float64, **accumulated)


# ------------------------------------------------------------------------------------------------------ two processes


def _shared_measures() -> Iterator[tuple[str, Case]]:
    """Every measure of one model, and the score of all."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    for name in MODELS:
        yield f"score/{name}", partial(measures.score, name, torch.float64, accelerator)
    bert = ("bert", torch.float64, accelerator)
    for estimator in (*ESTIMATORS, "exact"):
        yield f"diagonal-{estimator}/bert", partial(measures.diagonal, *bert, estimator=estimator)
    yield "product/bert", partial(measures.product, *bert)
    yield "rho/bert", partial(measures.lipschitz, *bert)
    yield "spectrum/bert", partial(measures.spectrum, *bert)
    yield "expected/bert", partial(measures.expected, *bert)
    yield "worst-case/bert", partial(measures.worst, *bert)
    yield "certificate/bert", partial(measures.certificate, *bert, refine_steps=2)
    yield "certificate/custom", partial(measures.certificate, "custom", torch.float64, accelerator)
    # products of this type are finite differences
    yield "score/bert/float32", partial(measures.score, "bert", torch.float32, accelerator)


def _shared_training() -> Iterator[tuple[str, Case]]:
    for case in ("price", "adam", "hutchinson", "estimated_rho"):
        run = partial(training.train, "trainer", "bert", torch.float64)
        yield f"trainer/{case}/bert", partial(run, **training.SETTINGS[case])
    yield "trainer/antithetic/llama", partial(training.train, "trainer", "llama", torch.float64, antithetic=True)
    yield "callback/price/bert", partial(training.train, "callback", "bert", torch.float64)


GROUPS: dict[str, Callable[[], Iterator[tuple[str, Case]]]] = {
    "two-processes": _shared_measures,
    "two-processes/training": _shared_training,
    "shards": shards.measured,
    "shards/training": shards.trained,
}


@lru_cache
def two_processes(group: str) -> dict[str, Stored]:
    """The results of all cases of a group, from one pair of processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        on_two_processes(_both, group, str(path))
        return dict(json.loads(path.read_text()))


def _both(group: str, path: str) -> None:
    results = {f"{group}/{name}": run_case(case) for name, case in GROUPS[group]()}
    gathered: list[Any] = [None, None]
    torch.distributed.all_gather_object(gathered, results)
    for case, values in gathered[0].items():
        if values != gathered[1][case]:
            raise RuntimeError(f"{case}: the first process has {values}, the second {gathered[1][case]}")
    if torch.distributed.get_rank() == 0:
        Path(path).write_text(json.dumps(results))


def run_case(case: Case) -> Stored:
    """The values of a case, on one thread and from fixed random states, both of which are put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads add in another order
    gc.freeze()  # each training collects garbage, which would look through all modules that are imported
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return stored(case())
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)
