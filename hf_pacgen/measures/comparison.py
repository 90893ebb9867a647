"""All measures of one solution, to be held against those of others."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from typing_extensions import Unpack

from hf_pacgen.config import RelativeSharpnessConfig, ScoreConfig, SharpnessConfig, SpectrumConfig
from hf_pacgen.measures.landscape import mean_loss
from hf_pacgen.measures.pacgen import pacgen
from hf_pacgen.measures.relative_sharpness import relative_sharpness
from hf_pacgen.measures.session import DataOptions, measure
from hf_pacgen.measures.sharpness import expected_sharpness
from hf_pacgen.measures.spectrum import hessian_spectrum
from hf_pacgen.model.parameters import trainable_parameters
from hf_pacgen.results.measures import Measures

MEASURED = ("score", "relative", "spectrum", "sharpness")
"""What can be measured of a solution, beside its loss and norm; all of it depends on the score's passes."""
CHEAP = ("score", "relative")
"""Those that take together at most twice as long as the score."""


@measure
def measure_all(
    model: nn.Module,
    data: Any,
    *,
    name: str,
    test_data: Any = None,
    measures: Collection[str] = MEASURED,
    noise_scale: float = 0.01,
    score: ScoreConfig = ScoreConfig(),
    spectrum: SpectrumConfig = SpectrumConfig(probes=0),  # trace and density are not compared
    sharpness: SharpnessConfig = SharpnessConfig(),
    **options: Unpack[DataOptions],
) -> Measures:
    """All measures of one solution on its training data; the gap as well where test data is given.

    Args:
        model, data, options: as for :func:`hf_pacgen.pacgen`.
        name: of the solution.
        test_data: examples that the model has not seen.
        measures: which of "score" (always measured: the losses are its), "relative" (relative sharpness), "spectrum"
            (λ_max) and "sharpness" (expected sharpness); what is left out is None.
        noise_scale: σ of the expected sharpness.
        score, spectrum, sharpness: settings of the measures; the relative sharpness has the subset and the seed of
            ``sharpness``.

    Raises:
        ValueError: an unknown measure, and what the measures raise.
    """
    began = time.perf_counter()
    if unknown := sorted(set(measures) - set(MEASURED)):
        raise ValueError(f"measures must be of {', '.join(map(repr, MEASURED))}; got {', '.join(map(repr, unknown))}.")
    # each by itself: they share nothing but the data, and every one leaves the model as it was
    result = pacgen(model, data, config=score, **options)
    parts: list[Any] = [result]
    values: dict[str, Any] = {}
    if "spectrum" in measures:
        parts.append(top := hessian_spectrum(model, data, k=1, config=spectrum, **options))
        values |= {"largest_eigenvalue": top.eigenvalues[0], "largest_eigenvalue_converged": top.converged[0]}
    if "sharpness" in measures:
        parts.append(rise := expected_sharpness(model, data, noise_scale=noise_scale, config=sharpness, **options))
        values |= {"expected_sharpness": rise.mean, "expected_sharpness_stderr": rise.stderr}
        values["noise_scale"] = noise_scale
    if "relative" in measures:
        same = RelativeSharpnessConfig(max_examples=sharpness.max_examples, seed=sharpness.seed)
        parts.append(relative := relative_sharpness(model, data, config=same, **options))
        levels = [(f"{s:g}", mean, e) for s, mean, e in relative.by_level()]
        values |= {
            "relative_sharpness": relative.relative_sharpness,
            "relative_sharpness_stderr": relative.relative_sharpness_stderr,
            "relative_sharpness_by_level": {level: mean for level, mean, _ in levels},
            "relative_sharpness_by_level_stderr": {level: e for level, _, e in levels if e is not None},
        }
    test_loss = None if test_data is None else mean_loss(model, test_data, **options)
    squares = (torch.linalg.vector_norm(p.detach()).item() ** 2 for p in trainable_parameters(model).values())
    # what a score and the measures call by one name is the same
    names = {f.name for f in fields(result)} & {f.name for f in fields(Measures)} - {"seconds", "status", "origin"}
    return Measures(
        **{shared: getattr(result, shared) for shared in names},
        name=name,
        **values,
        weight_norm=math.sqrt(sum(squares)),
        test_loss=test_loss,
        gap=None if test_loss is None else test_loss - result.loss,
        seconds=time.perf_counter() - began,
        status=tuple(sentence for part in parts for sentence in part.status),
    )
