"""``certify()``: a bound on the error of the noisy model that holds for new examples."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from typing_extensions import Unpack

from hf_pacgen.certify import validity
from hf_pacgen.certify.draws import NoisyErrors
from hf_pacgen.certify.error_rate import ErrorFunction, ErrorRate, is_per_document
from hf_pacgen.certify.held_out import held_out_bound, was_fitted
from hf_pacgen.certify.posterior import DEFAULT_SCALES, PriorScales
from hf_pacgen.certify.prints import batch_fingerprints
from hf_pacgen.certify.priors import Prior, PriorLike, resolve_prior
from hf_pacgen.certify.refinement import refined
from hf_pacgen.certify.search import Candidate, Case, best_shape, certified_draws, on_the_way, planned_steps, pulled
from hf_pacgen.config import CertificateConfig, PriorGroups, ScoreConfig
from hf_pacgen.curvature.displacement import SavedWeights
from hf_pacgen.curvature.run_identity import agree, described
from hf_pacgen.data.batches import length
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
            validity.check_adapters(model, parameters)
            center = resolve_prior(prior, model, parameters, **_of_examples(data, config))
            fitted = was_fitted(model, center, config)
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
            collate_fn = options.get("collate_fn") or getattr(data, "collate_fn", None)
            sizes, unit, notes = _survey(noisy, center, config, collate_fn)
            notes += [*center.notes, *filter(None, [validity.given_weights(model, parameters, center)])]
            notes += _said(validity.doubts(model, trainable, parameters, center))
            case = Case(noisy=noisy, prior=_scales(center, parameters, config), config=config, sizes=sizes)
            tick.stage("certificate")
            # nothing up to here is certified: search and refinement are free, fresh draws pay for what they found
            start = chosen = best_shape(case, curvature)
            if steps := planned_steps(case, start):
                chosen = refined(case, pulled(case, curvature, start), steps)
            proved = certified_draws(case, chosen)
            binary = error_fn is None and unit == "example"  # a share of labels, or one's own errors, may be parts
            beside = held_out_bound(noisy, center, fitted, config.delta, binary=binary)
        counts = {name: parameter.numel() for name, parameter in parameters.items()}
    about: Any = {"prior": center.description, "unit": unit, "held_out": not fitted}
    about |= {"notes": (*notes, *on_the_way(case, chosen)), **({} if beside is None else beside.fields)}
    about["refinement"] = _gain(steps, start, chosen) if steps else None
    return _certificate(case, counts, chosen, *proved, seconds=time.perf_counter() - began, **about)


def _said(doubts: Iterable[str]) -> Iterator[str]:
    # what cannot be seen is said twice, for the one who runs it and for the one who reads the certificate
    for sentence in doubts:
        warnings.warn(sentence, stacklevel=3)
        yield sentence


def _scales(center: Prior, parameters: Mapping[str, Any], config: CertificateConfig) -> PriorScales:
    groups = {name: config.prior_groups.facts(name) for name in parameters}
    # a prior of a split may be the model itself, and then nothing is gained by a wider one
    least = None if center.held_out is None else 0.5
    return PriorScales(center.state, groups, config.prior_scales or DEFAULT_SCALES, least=least)


def _of_examples(data: Any, config: CertificateConfig) -> dict[str, Any]:
    """What the record of a prior may name, the fingerprint of a table and its number of rows; and if one vouches."""
    rows = data.dataset if isinstance(data, DataLoader) else data
    counted = None if isinstance(data, (list, tuple)) else length(rows)  # a list is one of batches
    prints = [getattr(rows, "_fingerprint", None)]
    return {"prints": prints, "num_examples": counted, "assume_independent": config.assume_independent}


def _survey(
    noisy: NoisyErrors, prior: Prior, config: CertificateConfig, collate_fn: Any
) -> tuple[list[int], str, list[str]]:
    """Sizes of all batches, the unit of an example, and notes; refuses what is not n independent examples."""
    objective = noisy.objective

    def look(index: int, batch: Any) -> tuple[int, bool, int | None, list[bytes]]:
        validity.check_packing(objective, batch, index, assume_independent=config.assume_independent)
        common = validity.unpadded_length(objective, batch)
        return count_examples(batch), is_per_document(batch), common, list(batch_fingerprints(batch, objective.model))

    sizes, documents, lengths, keys = zip(*noisy.visit(look), strict=True)
    prints = [key for part in keys for key in part]
    validity.check_sizes(sizes)
    unknown = prior.check_unseen(prints, objective.model, collate_fn, assume_independent=config.assume_independent)
    repeats = validity.check_repeats(prints, assume_independent=config.assume_independent)
    notes = [unknown, repeats, validity.doubt_pieces(lengths)]
    return list(sizes), "document" if any(documents) else "example", [note for note in notes if note]


def _gain(steps: int, start: Candidate, chosen: Candidate) -> dict[str, float]:
    before, after = start.estimate, chosen.estimate
    return {"steps": steps, "shaped_bound": before, "refined_bound": after, "gain": before - after}


def _certificate(
    case: Case,
    counts: Mapping[str, int],
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
    return Certificate(
        bound=proved.bound,
        status="vacuous" if proved.vacuous else "certified",
        empirical_error=proved.mean,
        empirical_bound=proved.empirical_bound,
        kl=fit.kl,
        price=fit.price,
        n=case.n,
        delta=config.delta,
        delta_draws=proved.delta_monte_carlo,
        eta=chosen.eta if proved.eta is None else proved.eta,
        # one number for many τ: their geometric mean over the weights
        prior_scale=math.exp(sum(m * math.log(fit.scales[name]) for name, m in counts.items()) / total),
        draws=draws,
        num_parameters=total,
        by_module=by_module,
        config=config.to_dict(),
        **about,
    )
