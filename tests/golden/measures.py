"""Every public measure of a model: functions that return what is to be compared."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

import datasets
import torch
from torch import nn
from torch.utils.data import DataLoader

from golden.subjects import batches, examples, model, own_loss, ramp, token_error
from hf_pacgen import (
    CertificateConfig,
    ScoreConfig,
    SharpnessConfig,
    SpectrumConfig,
    certify,
    expected_sharpness,
    hessian_diagonal,
    hessian_lipschitz,
    hessian_spectrum,
    hessian_vector_product,
    pacgen,
    pacgen_score,
    perturbed,
    train_prior,
    worst_case_sharpness,
)

Values = dict[str, Any]

SCORE = (
    "score score_per_parameter kl_complexity kl_complexity_per_parameter eta active_fraction kl_active_fraction "
    "num_parameters num_examples num_units loss hessian_trace hessian_trace_stderr hessian_lipschitz by_module "
    "estimator hvp_method num_hvps num_gradients"
).split()
DIAGONAL = (
    "values stderr trace trace_stderr loss num_units num_examples estimator hvp_method num_hvps num_gradients blend"
).split()
LIPSCHITZ = "value ratios iterations batches converged num_hvps".split()
SPECTRUM = (
    "eigenvalues residuals converged trace trace_stderr nodes weights eigenvectors num_parameters num_examples "
    "num_units iterations probes num_hvps hvp_method"
).split()
EXPECTED = "mean stderr draws converged loss num_examples num_units num_forward noise_scale".split()
WORST = "value relative loss rises steps converged num_examples num_units box".split()
CERTIFICATE = (
    "bound status empirical_error empirical_bound kl price n delta eta prior_scale draws num_parameters by_module "
    "refinement unit"
).split()


def fields(result: Any, names: Iterable[str]) -> Values:
    """The fields that are compared: all but times, sentences and settings."""
    return {name: getattr(result, name) for name in names}


def place(name: str, accelerator: Any) -> dict[str, Any]:
    return own_loss(name) | {"accelerator": accelerator}


def score(name: str, dtype: torch.dtype, accelerator: Any = None, **settings: Any) -> Values:
    config = ScoreConfig(**settings)
    where = place(name, accelerator)
    result = pacgen(model(name, dtype), batches(name, dtype), config=config, progress=False, **where)
    return fields(result, SCORE)


def score_of_data(kind: str, dtype: torch.dtype, **settings: Any) -> Values:
    """The score from the other kinds of data, which are cut into batches or sampled first."""
    whole = examples("bert", 11, dtype)
    rows = [{key: values[i] for key, values in whole.items()} for i in range(11)]
    if kind == "loader":
        data: Any = DataLoader(rows, batch_size=4)  # type: ignore[arg-type]
    else:
        data = datasets.Dataset.from_list([{key: value.tolist() for key, value in row.items()} for row in rows])
    config = ScoreConfig(**settings)
    return fields(pacgen(model("bert", dtype), data, config=config, batch_size=3, progress=False), SCORE)


def score_of_tensors() -> Values:
    weights = ramp(model("bert", torch.float64), 0.3)
    curvature = {name: 40 * tensor.flip(0) for name, tensor in weights.items()}
    terms = pacgen_score(weights, curvature, 0.7, eta=50.0)
    return fields(terms, "score kl_complexity num_active num_kl_active num_parameters smoothness".split())


def diagonal(name: str, dtype: torch.dtype, accelerator: Any = None, **settings: Any) -> Values:
    config = ScoreConfig(**settings)
    where = place(name, accelerator)
    data = batches(name, dtype)
    if settings.get("estimator") == "exact" and name != "custom":
        data = data[:1]  # one product for every weight and batch takes long
    result = hessian_diagonal(model(name, dtype), data, config=config, progress=False, **where)
    return fields(result, DIAGONAL)


def product(name: str, dtype: torch.dtype, accelerator: Any = None, **settings: Any) -> Values:
    made = model(name, dtype)
    where = place(name, accelerator)
    return {"product": hessian_vector_product(made, batches(name, dtype), ramp(made, 0.5), **settings, **where)}


def lipschitz(name: str, dtype: torch.dtype, accelerator: Any = None, **settings: Any) -> Values:
    config = ScoreConfig(lipschitz_directions=3, **settings)
    where = place(name, accelerator)
    result = hessian_lipschitz(model(name, dtype), batches(name, dtype), config=config, progress=False, **where)
    return fields(result, LIPSCHITZ)


def spectrum(name: str, dtype: torch.dtype, accelerator: Any = None, **settings: Any) -> Values:
    config = SpectrumConfig(**{"probes": 2, "iterations": 20, "density_iterations": 8, **settings})
    where = place(name, accelerator)
    result = hessian_spectrum(model(name, dtype), batches(name, dtype), k=3, config=config, progress=False, **where)
    return fields(result, SPECTRUM)


def expected(
    name: str, dtype: torch.dtype, accelerator: Any = None, *, by_name: bool = False, **settings: Any
) -> Values:
    made = model(name, dtype)
    level: Any = {key: tensor.abs() for key, tensor in list(ramp(made, 0.1).items())[:4]} if by_name else 0.1
    config = SharpnessConfig(**{"draws": 6, "tolerance": 0.0, **settings})
    where = place(name, accelerator)
    data = batches(name, dtype)
    return fields(expected_sharpness(made, data, noise_scale=level, config=config, progress=False, **where), EXPECTED)


def worst(name: str, dtype: torch.dtype, accelerator: Any = None) -> Values:
    config = SharpnessConfig(ascent_steps=6)
    where = place(name, accelerator)
    data = batches(name, dtype)
    return fields(
        worst_case_sharpness(model(name, dtype), data, box=0.05, config=config, progress=False, **where), WORST
    )


def certificate(name: str, dtype: torch.dtype, accelerator: Any = None, **settings: Any) -> Values:
    made, prior = model(name, dtype), model(name, dtype)
    _move(made, 0.05, settings.get("parameters", ["*"]))
    return _certified(name, made, batches(name, dtype), prior, accelerator, **settings)


def certificate_of_a_trained_prior(dtype: torch.dtype) -> Values:
    made = model("bert", dtype)
    parts = batches("bert", dtype)
    prior = train_prior(made, parts + parts, lambda copied, _: _move(copied, 0.05), seed=1)
    settings = {"assume_independent": True}  # the batches come twice
    return _certified("bert", made, prior.certificate_data, prior, None, **settings)


def _certified(name: str, made: nn.Module, data: Any, prior: Any, accelerator: Any, **settings: Any) -> Values:
    config = CertificateConfig(**{"draws": 9, "search_examples": 8, **settings})
    where = place(name, accelerator) | ({"error_fn": token_error} if name == "custom" else {})
    return fields(certify(made, data, prior=prior, config=config, progress=False, **where), CERTIFICATE)


def _move(made: nn.Module, scale: float, patterns: Iterable[str] = ("*",)) -> None:
    """Stands for training: a fixed step away from where the model was."""
    with torch.no_grad():
        for name, change in ramp(made, scale).items():
            if any(fnmatch(name, pattern) for pattern in patterns):
                made.get_parameter(name).add_(change)


def noisy(name: str, dtype: torch.dtype, *, by_name: bool = False, **settings: Any) -> Values:
    made = model(name, dtype)
    before = copy.deepcopy(made.state_dict())
    level: Any = {key: tensor.abs() for key, tensor in list(ramp(made, 0.1).items())[:4]} if by_name else 0.1
    with perturbed(made, level, seed=3, **settings):
        weights = {key: p.detach().clone() for key, p in made.named_parameters()}
    restored = all(value.equal(before[key]) for key, value in made.state_dict().items())
    return {"weights": weights, "restored": restored}
