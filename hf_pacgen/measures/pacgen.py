"""``pacgen()``: where curvature, ρ and the score meet."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from hf_pacgen.config import ScoreConfig
from hf_pacgen.config.settings import number
from hf_pacgen.curvature.checkpoint import Checkpoint
from hf_pacgen.curvature.checks import require_unchanged, sanity, weights_checksum
from hf_pacgen.curvature.diagonal import estimate_diagonal
from hf_pacgen.curvature.examination import examine_for
from hf_pacgen.curvature.hvp import choose_method
from hf_pacgen.curvature.lipschitz import estimate_lipschitz
from hf_pacgen.curvature.run_identity import identity, qualified_name
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.objective import Objective
from hf_pacgen.maths.score import ScoreTerms, pacgen_score
from hf_pacgen.maths.score_errors import ScoreErrors
from hf_pacgen.measures.session import DataOptions, measure, session
from hf_pacgen.results.diagonal import DiagonalEstimate
from hf_pacgen.results.lipschitz import LipschitzEstimate
from hf_pacgen.results.pacgen import PACGenResult, by_module, score_fields
from hf_pacgen.show.wording import findings


@measure
def pacgen(
    model: nn.Module,
    data: Any,
    *,
    config: ScoreConfig = ScoreConfig(),
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 50,
    **options: Unpack[DataOptions],
) -> PACGenResult:
    """PACGen of a model on its training data: Ψ, K(η) and what is needed to judge them.

    Ψ = Σ_i log((|w_i| + N_i) · max(sqrt(H_ii + ρ√m N_i), 1/N_i)), N_i = γ|w_i| + ε, with H the Hessian of
    the mean loss over all loss units of the data and ρ its Lipschitz constant; see :func:`pacgen_score`
    for K(η).  Lower is better.  The model is left exactly as it was found.

    ``loss_fn`` and what follows it are the options of every measure of this package.

    Args:
        model: a ``PreTrainedModel``, a PEFT model, or any module with a ``loss_fn``; on its device.
        data: the training data: a DataLoader, a ``datasets.Dataset`` of model inputs, or an iterable of
            batches that can be gone over more than once.
        config: settings of the score.
        checkpoint_dir: a folder (one for all processes) in which the state is saved.  After a kill at any moment
            the same call goes on from there to the same numbers, bit for bit; with another number of processes, to
            rounding.  SIGTERM ends the process with code 143, the state saved.  A finished run removes its files.
        checkpoint_every: number of batches of a process after which its state is saved.
        loss_fn: ``loss_fn(model, batch) -> (loss_sum, num_units)`` instead of the model's own loss.  ``loss_sum`` is
            the *sum* over the batch's units (``reduction="sum"``), not torch's default mean, which would count a
            batch of 8 for an eighth.
        collate_fn, batch_size: how a dataset becomes batches; ragged integer columns are padded by default.
        accelerator: shares the batches out over its processes.
        progress: show a progress bar (on the main process).

    Returns:
        A :class:`PACGenResult`; its ``status`` says in sentences what limits the numbers.

    Raises:
        ValueError: no trainable parameters, empty or unlabeled data, a loss that is not finite or not deterministic,
            processes with different models, data or arguments (the message names the difference, on each of them), a
            checkpoint of another run, ...; nothing is left changed.
        TypeError: ``model`` is no module, ``config`` no ScoreConfig, ``data`` of a kind that cannot be scored, or an
            option that there is not.

    Source: Wang, Keskar, Xiong, Socher 2018, arXiv 1809.07402.
    """
    began = time.perf_counter()
    checkpoint_every = number(checkpoint_every, "checkpoint_every", minimum=1, integer=True)
    with session(model, data, config, derivatives=True, **options) as (objective, tick):
        checkpoint = None if checkpoint_dir is None else _opened(objective, config, checkpoint_dir, checkpoint_every)
        with WeightSpace(objective) as space, nullcontext() if checkpoint is None else checkpoint.watching():
            before = weights_checksum(space)
            examine_for(space, config)
            smoothness = None
            if checkpoint is not None:
                smoothness, tick.then = checkpoint.lipschitz, checkpoint.stop_if_asked
            if smoothness is None and config.lipschitz_directions:
                tick.stage("ρ")
                smoothness = estimate_lipschitz(space, config, tick=tick)
            if checkpoint is not None:
                checkpoint.lipschitz = smoothness
            tick.stage("Hessian diagonal", passes=config.passes or 1)
            diagonal = estimate_diagonal(space, config, tick=tick, checkpoint=checkpoint)
        require_unchanged(space, before)
        result = finish(space, config, diagonal, smoothness)
    if checkpoint is not None:  # only now: whoever is killed before goes on from the last state
        checkpoint.close()
    return dataclasses.replace(result, seconds=time.perf_counter() - began)


def finish(
    space: WeightSpace, config: ScoreConfig, diagonal: DiagonalEstimate, smoothness: LipschitzEstimate | None
) -> PACGenResult:
    """The result of a score, of its diagonal and its ρ."""
    objective = space.objective
    rho, rho_stderr = (config.rho, 0.0) if smoothness is None else (smoothness.value, smoothness.stderr)
    eta = config.eta
    if eta == "n":
        eta = config.num_training_examples or objective.batches.num_examples()
    eta = float(eta)
    epsilons = space.half_widths(*config.box)
    terms, traces = _terms(space, config, diagonal.values, rho, eta, epsilons)
    errors: dict[str, Any] = _errors(space, config, diagonal, (rho, rho_stderr), eta, epsilons)
    total, method = sum(terms.values(), ScoreTerms()), diagonal.hvp_method
    if method is None and config.lipschitz_directions:  # products were made for ρ alone
        method = choose_method(space, config.hvp)
    return PACGenResult(
        **score_fields(total),
        **{f"{name}_stderr": error for name, error in errors.items()},
        eta=eta,
        num_examples=diagonal.num_examples,
        num_units=diagonal.num_units,
        loss=diagonal.loss,
        hessian_trace=diagonal.trace,
        hessian_trace_stderr=diagonal.trace_stderr,
        hessian_lipschitz=rho,
        hessian_lipschitz_stderr=rho_stderr,
        hessian_lipschitz_max=None if smoothness is None else smoothness.largest,
        by_module=by_module(terms, traces),
        estimator=diagonal.estimator.value,
        hvp_method=None if method is None else method.value,
        num_hvps=diagonal.num_hvps + (0 if smoothness is None else smoothness.num_hvps),
        num_gradients=diagonal.num_gradients,
        status=(*objective.notes, *findings(total, diagonal, smoothness, eta), *sanity(space, diagonal, smoothness)),
        checks=dict(objective.checks),
        config=config.to_dict(),
    )


def _terms(
    space: WeightSpace,
    config: ScoreConfig,
    curvature: Mapping[str, Tensor],
    rho: float,
    eta: float,
    epsilons: Mapping[str, float],
) -> tuple[dict[str, ScoreTerms], dict[str, float]]:
    # the terms of the score and the trace of every parameter, over all shards
    terms, traces = {}, {}
    # parameter by parameter, so that the share of every module is known; the sums of shards meet as one tensor
    for name, weights in space.weights.items():
        values = curvature[name].to(weights.device)
        settings: Any = {"gamma": config.gamma, "epsilon": epsilons[name], "eta": eta}
        part = pacgen_score(weights.detach(), values, rho, num_parameters=space.num_parameters, **settings)
        fields = dataclasses.asdict(part)
        trace, *sums = space.total(
            torch.tensor([curvature[name].sum(dtype=torch.float64), *fields.values()], dtype=torch.float64)
        ).tolist()
        part = ScoreTerms(**{k: type(old)(value) for (k, old), value in zip(fields.items(), sums, strict=True)})
        terms[name], traces[name] = part, trace
    return terms, traces


def _errors(
    space: WeightSpace,
    config: ScoreConfig,
    diagonal: DiagonalEstimate,
    rho: tuple[float, float | None],
    eta: float,
    epsilons: Mapping[str, float],
) -> dict[str, Any]:
    # the standard errors of the score, over all shards
    sample = diagonal.sample
    if sample is None:
        raise LookupError("The diagonal has no sample: every estimator must keep one for the errors of the score.")
    errors = ScoreErrors(sample, *rho, root=math.sqrt(space.num_parameters), gamma=config.gamma, eta=eta)
    for name, weights in space.weights.items():
        looked_at = weights.detach().reshape(-1)[sample.places[name]]
        errors.add(name, looked_at, epsilon=epsilons[name])
    space.total(errors.table)
    return errors.finish()


def _opened(objective: Objective, config: ScoreConfig, folder: str | os.PathLike[str], every: int) -> Checkpoint:
    if not WeightSpace(objective).is_whole:
        raise ValueError(
            "checkpoint_dir is for models that every process has as a whole: the shards of fully_shard would have to "
            "be saved at one moment. Leave it out, or score the model without sharding."
        )
    batches, loss = objective.batches, objective.loss_fn
    with batches.processes.together():
        name = objective.kind.value if loss is None else qualified_name(loss)
        run = identity(objective.model, batches, config, name)
        checkpoint = Checkpoint(folder, identity=run, processes=batches.processes, every=every)
    checkpoint.open(batches)
    return checkpoint
