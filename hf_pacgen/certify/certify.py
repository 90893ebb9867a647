"""``certify()``: a bound on the error of the noisy model that holds for new examples."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_pacgen.certify.draws import NoisyErrors
from hf_pacgen.certify.error_rate import ErrorFunction, ErrorRate, is_per_document
from hf_pacgen.certify.posterior import DEFAULT_SCALES, PriorScales
from hf_pacgen.certify.priors import Prior, PriorLike, resolve_prior
from hf_pacgen.certify.search import Candidate, best_shape, certified_draws, refined
from hf_pacgen.certify.splits import batch_fingerprints
from hf_pacgen.certify.validity import (
    certified_parameters,
    check_batch_norm,
    check_packing,
    check_repeats,
    check_sampling,
    doubt_pieces,
    doubts,
    unpadded_length,
)
from hf_pacgen.config import CertificateConfig, PriorGroups, ScoreConfig
from hf_pacgen.curvature.displacement import SavedWeights
from hf_pacgen.data.collation import count_examples
from hf_pacgen.data.objective import LossFunction, Objective
from hf_pacgen.measures.hessian import hessian_diagonal
from hf_pacgen.measures.session import check_arguments, measuring
from hf_pacgen.model.state import unwrap
from hf_pacgen.results.certificate import Certificate

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Certificate", "certify"]


def certify(
    model: nn.Module,
    data: Any,
    *,
    prior: PriorLike,
    config: CertificateConfig = CertificateConfig(),
    error_fn: ErrorFunction | None = None,
    loss_fn: LossFunction | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Certificate:
    """Bound the error of a model with Hessian-shaped noise on new examples, by PAC-Bayes.

    The posterior is noise around the trained weights, 1/s_i² = ηH_ii + 1/τ² (and refined, if asked), which may depend
    on the data in every way; the prior N(p, τ²) may not: its center p is given, and the choice of τ from a grid fixed
    beforehand is paid for.  The model is left exactly as it was found.

    Args:
        model: as for :func:`hf_pacgen.pacgen`, trained on the data or not.
        data: the n independent examples; every batch has a draw of the noise of its own, so small batches give more
            draws.  For language models a row is one document.
        prior: ``"zero"``; the initial weights by name; a model or a folder with the *pretrained* weights; or what
            :func:`train_prior` made of a part of the data, to be certified on the other part.
        config: settings.
        error_fn: ``error_fn(model, batch)`` -> one error in [0, 1] for each example.  By default the 0-1 error of the
            model's logits, for an example with several labels the fraction of wrong ones.
        loss_fn, collate_fn, batch_size, accelerator, progress: as for :func:`hf_pacgen.pacgen`; the loss shapes
            the noise, and need not be bounded.

    Returns:
        A :class:`Certificate`; print its ``sentence``.

    Raises:
        ValueError: whatever would make the certificate invalid and can be seen: a prior that saw the data or has
            other names or shapes, batch-norm in train mode, errors outside [0, 1] or not one for each example,
            copies among the examples, packed documents; and what :func:`hf_pacgen.pacgen` raises.
        TypeError: data or a prior of another kind.

    Source: Seeger (JMLR 2002), Maurer (2004), Langford and Caruana (2002), Dziugaite and Roy (UAI 2017); noise of
    Wang et al. 2018 (arXiv 1809.07402).
    """
    began = time.perf_counter()
    check_arguments(model, config, CertificateConfig)
    model = unwrap(model)
    check_batch_norm(model)
    check_sampling(data)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    common: Any = {"loss_fn": loss_fn, "collate_fn": collate_fn, "batch_size": batch_size, "accelerator": accelerator}
    with certified_parameters(model, config.parameters) as parameters:
        center = resolve_prior(prior, model, parameters, assume_independent=config.assume_independent)
        examples = min(config.search_examples, config.max_examples or config.search_examples)
        settings = ScoreConfig(estimator=config.estimator, max_examples=examples, seed=config.seed)
        curvature = hessian_diagonal(model, data, config=settings, progress=progress, **common)
        settings = ScoreConfig(max_examples=config.max_examples, seed=config.seed)
        with measuring(model, data, settings, **common) as objective, SavedWeights(objective.parameters) as saved:
            noisy = NoisyErrors(objective, ErrorRate(objective, error_fn), saved, seed=config.seed)
            sizes, unit, notes = _survey(noisy, center, config)
            doubtful = list(doubts(model, trainable, parameters, center))
            for sentence in doubtful:
                warnings.warn(sentence, stacklevel=2)
            notes += [*center.notes, *doubtful]
            scales = PriorScales(center.state, _groups(parameters, config), config.prior_scales or DEFAULT_SCALES)
            with tqdm(disable=not (progress and objective.batches.processes.is_main), leave=False, unit="batch") as bar:
                start, chosen, (proved, draws) = _prove(noisy, curvature.values, scales, config, sizes, bar.update)
    return _certificate(
        {name: parameter.numel() for name, parameter in parameters.items()},
        config,
        center,
        start,
        chosen,
        proved,
        n=sum(sizes),
        draws=draws,
        unit=unit,
        notes=tuple(notes),
        seconds=time.perf_counter() - began,
    )


def _prove(
    noisy: NoisyErrors,
    curvature: Mapping[str, Tensor],
    scales: PriorScales,
    config: CertificateConfig,
    sizes: list[int],
    tick: Callable[[], Any],
) -> tuple[Candidate, Candidate, Any]:
    """The shaped noise, what refinement made of it, and what the draws prove of that."""
    run: Any = {"n": sum(sizes), "tick": tick}
    stride = max(1, sum(sizes) // config.search_examples)
    start = chosen = best_shape(noisy, curvature, scales, config, stride=stride, **run)
    if config.refine_steps:
        chosen = refined(noisy, start, scales, config, stride=stride, **run)
    return start, chosen, certified_draws(noisy, chosen, config, sizes=sizes, **run)


def _certificate(
    sizes: Mapping[str, int],
    config: CertificateConfig,
    center: Prior,
    start: Candidate,
    chosen: Candidate,
    proved: Any,
    **rest: Any,
) -> Certificate:
    """What was proved of the chosen noise; ``sizes`` are the numbers of certified weights by parameter name."""
    count = sum(sizes.values())
    return Certificate(
        bound=proved.bound,
        status="vacuous" if proved.vacuous else "certified",
        empirical_error=proved.mean,
        empirical_bound=proved.empirical_bound,
        kl=chosen.fit.kl,
        price=chosen.fit.price,
        delta=config.delta,
        eta=chosen.eta if proved.eta is None else proved.eta,
        prior_scale=math.exp(sum(m * math.log(chosen.fit.scales[name]) for name, m in sizes.items()) / count),
        prior=center.description,
        num_parameters=count,
        by_module=_by_module(chosen, sizes),
        refinement=_gain(start, chosen, config),
        config=config.to_dict(),
        **rest,
    )


def _survey(noisy: NoisyErrors, prior: Prior, config: CertificateConfig) -> tuple[list[int], str, list[str]]:
    """Sizes of all batches, the unit of an example, and notes; refuses what is not n independent examples."""
    objective: Objective = noisy.objective
    processes = objective.batches.processes
    found: list[tuple[int, bool, int | None, list[bytes]]] = []
    with processes.together():
        for index, batch in noisy.batches():
            check_packing(objective, batch, index, assume_independent=config.assume_independent)
            prints = list(batch_fingerprints(batch))
            found.append((count_examples(batch), is_per_document(batch), unpadded_length(objective, batch), prints))
    found = [entry for part in processes.gather(found) for entry in part]
    sizes, documents, lengths, keys = zip(*found, strict=True)
    prints = [key for part in keys for key in part]
    prior.check_unseen(prints)
    notes = [check_repeats(prints, assume_independent=config.assume_independent), doubt_pieces(lengths)]
    return list(sizes), "document" if any(documents) else "example", [note for note in notes if note]


def _module(name: str) -> str:
    return name.rpartition(".")[0] or name


def _groups(parameters: Mapping[str, Tensor], config: CertificateConfig) -> dict[str, str]:
    if config.prior_groups is PriorGroups.MODEL:
        return dict.fromkeys(parameters, "all")
    modules = {name: _module(name) for name in parameters}
    if config.prior_groups is PriorGroups.MODULE:
        return modules
    return {n: ".".join(part for part in m.split(".") if not part.isdigit()) for n, m in modules.items()}


def _by_module(chosen: Candidate, sizes: Mapping[str, int]) -> dict[str, dict[str, float]]:
    shares: dict[str, dict[str, float]] = {}
    for name, size in sizes.items():
        entry = shares.setdefault(_module(name), {"kl": 0.0, "kl_share": 0.0, "num_parameters": 0, "prior_scale": 0.0})
        entry["kl"] += chosen.fit.kl_by_name[name]
        entry["kl_share"] = entry["kl"] / chosen.fit.kl if chosen.fit.kl else 0.0
        entry["num_parameters"] += size
        entry["prior_scale"] = chosen.fit.scales[name]
    return shares


def _gain(start: Candidate, chosen: Candidate, config: CertificateConfig) -> dict[str, float] | None:
    if not config.refine_steps:
        return None
    return {
        "steps": config.refine_steps,
        "shaped_bound": start.estimate,
        "refined_bound": chosen.estimate,
        "gain": start.estimate - chosen.estimate,
    }
