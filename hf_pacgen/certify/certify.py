"""``certify()``: a bound on the error of the noisy model that holds for new examples."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn
from typing_extensions import Unpack

from hf_pacgen.certify import validity
from hf_pacgen.certify.draws import NoisyErrors
from hf_pacgen.certify.error_rate import ErrorFunction, ErrorRate, is_per_document
from hf_pacgen.certify.posterior import DEFAULT_SCALES, PriorScales
from hf_pacgen.certify.priors import Prior, PriorLike, resolve_prior
from hf_pacgen.certify.refinement import refined
from hf_pacgen.certify.search import Candidate, Case, best_shape, certified_draws
from hf_pacgen.certify.splits import batch_fingerprints
from hf_pacgen.config import CertificateConfig, PriorGroups, ScoreConfig
from hf_pacgen.curvature.displacement import SavedWeights
from hf_pacgen.curvature.run_identity import agree, described
from hf_pacgen.data.contents import count_examples
from hf_pacgen.maths.certified_bound import CertifiedBound
from hf_pacgen.measures.hessian import hessian_diagonal
from hf_pacgen.measures.session import DataOptions, measure, processes_of, session
from hf_pacgen.model.state import unwrap
from hf_pacgen.results.certificate import Certificate


@measure
def certify(
    model: nn.Module,
    data: Any,
    *,
    prior: PriorLike,
    config: CertificateConfig = CertificateConfig(),
    error_fn: ErrorFunction | None = None,
    **options: Unpack[DataOptions],
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
        options: as for :func:`hf_pacgen.pacgen`; the loss shapes the noise, and need not be bounded.

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
    model, processes = unwrap(model), processes_of(model, options.get("accelerator"))
    with processes.together():
        validity.check_batch_norm(model)
        validity.check_sampling(data)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    # the curvature comes from a few examples, everything else from all
    few = min(config.search_examples, config.max_examples or config.search_examples)
    rough = ScoreConfig(estimator=config.estimator, max_examples=few, seed=config.seed)
    with validity.certified_parameters(model, config.parameters) as parameters:
        with processes.together():
            center = resolve_prior(prior, model, parameters, assume_independent=config.assume_independent)
            weights = described("prior", center.state) if processes.size > 1 else {}
        # another prior in each process would give a bound of none of them
        agree(processes, {"the": weights})
        curvature = hessian_diagonal(model, data, config=rough, **options).values
        with (
            session(model, data, config, whole=True, **options) as (objective, tick),
            SavedWeights(objective.parameters) as saved,
        ):
            # the refinement works outside processes.together(), where nobody may ask whether others have failed
            noisy = NoisyErrors(objective, ErrorRate(objective, error_fn), saved, seed=config.seed, tick=tick.advance)
            sizes, unit, notes = _survey(noisy, center, config)
            notes += center.notes
            # what cannot be seen is said twice, for the one who runs it and for the one who reads the certificate
            for sentence in validity.doubts(model, trainable, parameters, center):
                warnings.warn(sentence, stacklevel=2)
                notes.append(sentence)
            groups = {name: config.prior_groups.facts(name) for name in parameters}
            scales = PriorScales(center.state, groups, config.prior_scales or DEFAULT_SCALES)
            case = Case(noisy=noisy, prior=scales, config=config, sizes=sizes)
            tick.stage("certificate")
            # nothing up to here is certified: search and refinement are free, fresh draws pay for what they found
            start = chosen = best_shape(case, curvature)
            if config.refine_steps:
                chosen = refined(case, start)
            proved = certified_draws(case, chosen)
        counts = {name: parameter.numel() for name, parameter in parameters.items()}
    about: Any = {"prior": center.description, "unit": unit, "notes": tuple(notes)}
    return _certificate(case, counts, start, chosen, *proved, seconds=time.perf_counter() - began, **about)


def _survey(noisy: NoisyErrors, prior: Prior, config: CertificateConfig) -> tuple[list[int], str, list[str]]:
    """Sizes of all batches, the unit of an example, and notes; refuses what is not n independent examples."""
    objective = noisy.objective

    def look(index: int, batch: Any) -> tuple[int, bool, int | None, list[bytes]]:
        validity.check_packing(objective, batch, index, assume_independent=config.assume_independent)
        length = validity.unpadded_length(objective, batch)
        return count_examples(batch), is_per_document(batch), length, list(batch_fingerprints(batch))

    sizes, documents, lengths, keys = zip(*noisy.visit(look), strict=True)
    prints = [key for part in keys for key in part]
    prior.check_unseen(prints)
    repeats = validity.check_repeats(prints, assume_independent=config.assume_independent)
    notes = [repeats, validity.doubt_pieces(lengths)]
    return list(sizes), "document" if any(documents) else "example", [note for note in notes if note]


def _certificate(
    case: Case,
    counts: Mapping[str, int],
    start: Candidate,
    chosen: Candidate,
    proved: CertifiedBound,
    draws: float,
    **about: Any,
) -> Certificate:
    # counts are the numbers of certified weights by parameter name
    config, fit, total = case.config, chosen.fit, sum(counts.values())
    by_module: dict[str, dict[str, float]] = {}
    for name, count in counts.items():
        module = PriorGroups.MODULE.facts(name)
        entry = by_module.setdefault(module, {"kl": 0.0, "kl_share": 0.0, "num_parameters": 0, "prior_scale": 0.0})
        entry["kl"] += fit.kl_by_name[name]
        entry["kl_share"] = entry["kl"] / fit.kl if fit.kl else 0.0
        entry["num_parameters"] += count
        entry["prior_scale"] = fit.scales[name]
    before, after = start.estimate, chosen.estimate
    gain = {"steps": config.refine_steps, "shaped_bound": before, "refined_bound": after, "gain": before - after}
    return Certificate(
        bound=proved.bound,
        status="vacuous" if proved.vacuous else "certified",
        empirical_error=proved.mean,
        empirical_bound=proved.empirical_bound,
        kl=fit.kl,
        price=fit.price,
        n=case.n,
        delta=config.delta,
        eta=chosen.eta if proved.eta is None else proved.eta,
        # one number for many τ: their geometric mean over the weights
        prior_scale=math.exp(sum(m * math.log(fit.scales[name]) for name, m in counts.items()) / total),
        draws=draws,
        num_parameters=total,
        by_module=by_module,
        refinement=gain if config.refine_steps else None,
        config=config.to_dict(),
        **about,
    )
