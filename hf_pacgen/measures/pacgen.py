"""``pacgen()``: where curvature, ρ and the score meet."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_pacgen.config import ScoreConfig
from hf_pacgen.curvature.checkpoint import Checkpoint
from hf_pacgen.curvature.diagonal import estimate_diagonal
from hf_pacgen.curvature.hvp import choose_method
from hf_pacgen.curvature.lipschitz import estimate_lipschitz
from hf_pacgen.curvature.run_identity import identity
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.objective import LossFunction, Objective
from hf_pacgen.maths.score import ScoreTerms, pacgen_score
from hf_pacgen.measures.session import measuring, next_stage, progress_bar, ticker
from hf_pacgen.results.diagonal import DiagonalEstimate
from hf_pacgen.results.lipschitz import LipschitzEstimate
from hf_pacgen.results.pacgen import PACGenResult, by_module, score_fields
from hf_pacgen.show.wording import findings

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["pacgen"]


def pacgen(
    model: nn.Module,
    data: Any,
    *,
    config: ScoreConfig = ScoreConfig(),
    loss_fn: LossFunction | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    progress: bool = True,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 50,
) -> PACGenResult:
    """PACGen of a model on its training data: Ψ, K(η) and what is needed to judge them.

    Ψ = Σ_i log((|w_i| + N_i) · max(sqrt(H_ii + ρ√m N_i), 1/N_i)), N_i = γ|w_i| + ε, with H the Hessian of
    the mean loss over all loss units of the data and ρ its Lipschitz constant; see :func:`pacgen_score`
    for K(η).  Lower is better.  The model is left exactly as it was found.

    Args:
        model: a ``PreTrainedModel``, a PEFT model, or any module with a ``loss_fn``; on its device.
        data: the training data: a DataLoader, a ``datasets.Dataset`` of model inputs, or an iterable of
            batches that can be gone over more than once.
        config: settings of the score.
        loss_fn: ``loss_fn(model, batch) -> (loss_sum, num_units)`` instead of the model's own loss.  ``loss_sum`` is
            the *sum* over the batch's units (``reduction="sum"``), not torch's default mean, which would count a
            batch of 8 for an eighth.
        collate_fn, batch_size: how a dataset becomes batches; ragged integer columns are padded by default.
        accelerator: shares the batches out over its processes.
        progress: show a progress bar (on the main process).
        checkpoint_dir: a folder (one for all processes) in which the state is saved.  After a kill at any moment
            the same call goes on from there to the same numbers, bit for bit; with another number of processes, to
            rounding.  SIGTERM ends the process with code 143, the state saved.  A finished run removes its files.
        checkpoint_every: number of batches of a process after which its state is saved.

    Returns:
        A :class:`PACGenResult`; its ``status`` says in sentences what limits the numbers.

    Raises:
        ValueError: no trainable parameters, empty or unlabeled data, a loss that is not finite or not
            deterministic, processes with different models or data, a checkpoint of another run, ...; nothing is
            left changed.
        TypeError: ``model`` is no module, ``config`` no ScoreConfig, or ``data`` of a kind that cannot be scored.

    Source: Wang, Keskar, Xiong, Socher 2018, arXiv 1809.07402.
    """
    began = time.perf_counter()
    with measuring(model, data, config, loss_fn, collate_fn, batch_size, accelerator, shards=True) as objective:
        with ExitStack() as stack:
            checkpoint = _checkpoint(objective, config, checkpoint_dir, checkpoint_every)
            bar = stack.enter_context(progress_bar(objective, progress))
            space = stack.enter_context(WeightSpace(objective))
            smoothness, tick = None, ticker(objective, bar, checkpoint)
            if checkpoint is not None:
                stack.enter_context(checkpoint.watching())
                smoothness = checkpoint.lipschitz
            if smoothness is None and config.lipschitz_directions:
                next_stage(bar, objective, "ρ")
                smoothness = estimate_lipschitz(space, config, tick=tick)
            if checkpoint is not None:
                checkpoint.lipschitz = smoothness
            next_stage(bar, objective, "Hessian diagonal", passes=config.passes)
            diagonal = estimate_diagonal(space, config, tick=tick, checkpoint=checkpoint)
            rho = smoothness.value if smoothness is not None else config.rho
            n = config.num_training_examples or objective.batches.num_examples()
            eta = float(n) if config.eta == "n" else float(config.eta)
        terms, traces = _terms(space, config, diagonal.values, rho, eta)
    if checkpoint is not None:
        checkpoint.close()
    method = _method_name(space, config, diagonal)
    return _result(config, terms, traces, diagonal, smoothness, rho, eta, method, time.perf_counter() - began)


def _terms(
    space: WeightSpace, config: ScoreConfig, curvature: Mapping[str, Tensor], rho: float, eta: float
) -> tuple[dict[str, ScoreTerms], dict[str, float]]:
    """The terms of the score and the trace of every parameter, over all shards."""
    terms, traces = {}, {}
    for name, weights in space.weights.items():
        part = pacgen_score(
            weights.detach(),
            curvature[name].to(weights.device),
            rho,
            gamma=config.gamma,
            epsilon=config.epsilon,
            eta=eta,
            num_parameters=space.num_parameters,
        )
        trace = curvature[name].sum(dtype=torch.float64).item()
        fields = dataclasses.asdict(part)
        row = torch.tensor([trace, *fields.values()], dtype=torch.float64)
        trace, *sums = space.total(row).tolist()
        part = ScoreTerms(**{k: type(old)(value) for (k, old), value in zip(fields.items(), sums, strict=True)})
        terms[name], traces[name] = part, trace
    return terms, traces


def _result(
    config: ScoreConfig,
    terms: Mapping[str, ScoreTerms],
    traces: Mapping[str, float],
    diagonal: DiagonalEstimate,
    smoothness: LipschitzEstimate | None,
    rho: float,
    eta: float,
    hvp_method: str | None,
    seconds: float,
) -> PACGenResult:
    total = sum(terms.values(), ScoreTerms())
    return PACGenResult(
        **score_fields(total),
        eta=eta,
        num_examples=diagonal.num_examples,
        num_units=diagonal.num_units,
        loss=diagonal.loss,
        hessian_trace=diagonal.trace,
        hessian_trace_stderr=diagonal.trace_stderr,
        hessian_lipschitz=rho,
        by_module=by_module(terms, traces),
        estimator=diagonal.estimator.value,
        hvp_method=hvp_method,
        num_hvps=diagonal.num_hvps + (smoothness.num_hvps if smoothness is not None else 0),
        num_gradients=diagonal.num_gradients,
        seconds=seconds,
        status=tuple(findings(total, diagonal, smoothness, eta)),
        config=config.to_dict(),
    )


def _checkpoint(
    objective: Objective, config: ScoreConfig, folder: str | os.PathLike[str] | None, every: int
) -> Checkpoint | None:
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"checkpoint_every must be an integer of at least 1; got {every!r}.")
    if folder is None:
        return None
    if objective.shards.active:
        raise ValueError(
            "checkpoint_dir is for models that every process has as a whole: the shards of fully_shard would have to "
            "be saved at one moment. Leave it out, or score the model without sharding."
        )
    batches = objective.batches
    with batches.processes.together():
        checkpoint = Checkpoint(folder, identity=identity(objective, config), processes=batches.processes, every=every)
    checkpoint.open(batches)
    return checkpoint


def _method_name(space: WeightSpace, config: ScoreConfig, diagonal: DiagonalEstimate) -> str | None:
    if diagonal.hvp_method is None and config.lipschitz_directions:
        return choose_method(space, config.hvp).value
    return diagonal.hvp_method.value if diagonal.hvp_method is not None else None
