"""All measures of one solution, to be held against those of others."""

from __future__ import annotations

import math
import time
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


@measure
def measure_all(
    model: nn.Module,
    data: Any,
    *,
    name: str,
    test_data: Any = None,
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
        noise_scale: σ of the expected sharpness.
        score, spectrum, sharpness: settings of the measures; the relative sharpness has the subset and the seed of
            ``sharpness``.

    Raises:
        ValueError: what the measures raise.
    """
    began = time.perf_counter()
    # each by itself: they share nothing but the data, and every one leaves the model as it was
    result = pacgen(model, data, config=score, **options)
    top = hessian_spectrum(model, data, k=1, config=spectrum, **options)
    rise = expected_sharpness(model, data, noise_scale=noise_scale, config=sharpness, **options)
    same = RelativeSharpnessConfig(max_examples=sharpness.max_examples, seed=sharpness.seed)
    relative = relative_sharpness(model, data, config=same, **options)
    test_loss = None if test_data is None else mean_loss(model, test_data, **options)
    squares = (torch.linalg.vector_norm(p.detach()).item() ** 2 for p in trainable_parameters(model).values())
    # what a score and the measures call by one name is the same
    names = {f.name for f in fields(result)} & {f.name for f in fields(Measures)} - {"seconds", "status"}
    return Measures(
        **{shared: getattr(result, shared) for shared in names},
        name=name,
        largest_eigenvalue=top.eigenvalues[0],
        largest_eigenvalue_converged=top.converged[0],
        expected_sharpness=rise.mean,
        expected_sharpness_stderr=rise.stderr,
        noise_scale=noise_scale,
        relative_sharpness=relative.relative_sharpness,
        relative_sharpness_stderr=relative.relative_sharpness_stderr,
        relative_sharpness_by_level={f"{s:g}": mean for s, mean, _ in relative.by_level()},
        relative_sharpness_by_level_stderr={f"{s:g}": e for s, _, e in relative.by_level() if e is not None},
        weight_norm=math.sqrt(sum(squares)),
        test_loss=test_loss,
        gap=None if test_loss is None else test_loss - result.loss,
        seconds=time.perf_counter() - began,
        status=(*result.status, *top.status, *rise.status, *relative.status),
    )
