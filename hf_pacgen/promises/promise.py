"""``promise()``: the tightest honest statement about a model's error, from examples that it never saw."""

from __future__ import annotations

import dataclasses
import numbers
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from typing_extensions import Unpack

from hf_pacgen.certify.error_rate import ErrorFunction
from hf_pacgen.config.promise import PromiseConfig
from hf_pacgen.maths.bounded_losses import PromisedLoss
from hf_pacgen.maths.held_out_bounds import betting_bound, exact_error_bound
from hf_pacgen.measures.origin import origin_of
from hf_pacgen.measures.session import DataOptions, measure
from hf_pacgen.promises.examine import Seen, examined, prints_of
from hf_pacgen.promises.overlap import check_copies, check_overlap
from hf_pacgen.promises.rules import PARTS, rule_of, ruled
from hf_pacgen.promises.selection import Evaluations, check_selection, evaluations_of, run_folder
from hf_pacgen.promises.visit import left_out
from hf_pacgen.results.promise import ABSTAIN, Promise

EXACT, BETTING = "exact binomial bound, Clopper-Pearson", "betting bound, Waudby-Smith and Ramdas"
GIVEN = "the model"
"""The name among candidates of the model that is given first."""

Candidate = nn.Module | ErrorFunction
"""A model, or ``error_fn(model, batch)`` of a threshold or a prompt for the same model."""


@measure
def promise(
    model: nn.Module,
    held_out: Any,
    *,
    delta: float = 0.05,
    loss: PromisedLoss | str | None = None,
    candidates: int | Sequence[Candidate] | Mapping[str, Candidate] = 1,
    training_data: Any = None,
    max_error: float | None = None,
    coverage: float | None = None,
    error_fn: ErrorFunction | None = None,
    trainer_state: str | os.PathLike[str] | None = None,
    max_examples: int | None = None,
    assume_independent: bool = False,
    seed: int = 0,
    **options: Unpack[DataOptions],
) -> Promise:
    """What error may be promised of a model, from independent labeled examples that it never saw.

    With probability ≥ 1 - δ over the draw of the held-out examples, the expected loss of the model, in evaluation mode,
    on a new example of the same distribution is at most ``error_bound``: for losses of 0 and 1 the exact binomial bound
    P(Bin(n, p) ≤ errors) = δ, for others in [0, 1] a bound by betting.  The model is left as it was found.

    Args:
        model: any module; of models of transformers the errors are read from the logits and labels.
        held_out: as the data of :func:`hf_pacgen.pacgen`, one pass over it.  An example with many labels, such as the
            tokens of a text, counts once: tokens of one text depend on each other.
        delta: δ, for everything that is promised together.
        loss: :class:`PromisedLoss` or its name; by default ``"zero_one"`` for classes, ``"exact_match"`` for several
            labels and for answers to questions, ``"token_error"`` for tags and masked tokens.
        candidates: how many models, checkpoints, thresholds or prompts were compared on these examples, this one among
            them; or the others, as models or error functions, in a list or by name.  They are then tried here, and the
            one of the smallest bound is promised.  Each of k costs δ/k.
        training_data: what the model was trained on, as ``held_out``; examples that stand in both are refused.
        max_error: t, to find the ``threshold`` of confidence from which on at most the share t of the answers is wrong,
            by fixed-sequence testing of 20 thresholds from the confidences of ``training_data`` (without it, of a
            random fifth of the held-out examples).  Error bound, threshold and coverage get a third of δ each.
        coverage: to find the ``threshold`` of probability from which on classes make up sets that hold the label with
            at least that probability.  Error bound and sets get half of δ each.
        error_fn: ``error_fn(model, batch)`` -> one error in [0, 1] for each example, instead of ``loss``; with
            ``loss="zero_one"`` each must be 0 or 1, and the bound is exact.
        trainer_state: the folder of the training run, or its ``trainer_state.json``; by default what lies in the folder
            that the model was loaded from.
        max_examples, seed: a random subset, and what the data draws at random.
        assume_independent: you vouch for examples that repeat or are packed, and for a few (at most 5 %) whose inputs
            stand in the training data too, as in a random split of data in which some inputs are equal by nature.
        options: ``collate_fn``, ``batch_size``, ``accelerator``, ``progress`` as for :func:`hf_pacgen.pacgen`.

    Returns:
        A :class:`Promise`; print its ``statement``.

    Raises:
        ValueError: what would make the promise wrong and can be seen: no examples, labels of other data, examples that
            are in the training data, repeat or are packed, a model that was chosen on them, more candidates than
            examples, losses outside [0, 1], δ outside (0, 1); models of regression without ``error_fn`` and of text
            without ``loss``; too few examples for what is asked.
        TypeError: data or candidates of another kind.

    Source: Clopper and Pearson (1934); Langford (JMLR 2005); Waudby-Smith and Ramdas (JRSS-B 2024).
    """
    began = time.perf_counter()
    if options.pop("loss_fn", None) is not None:
        raise ValueError(
            "promise() takes no loss_fn, which trains a model and need not be bounded: pass loss= by its name, or "
            "error_fn(model, batch) -> one error in [0, 1] for each example."
        )
    rivals = _rivals(candidates, model, error_fn)
    config = PromiseConfig(
        delta=delta,
        loss=loss,  # type: ignore[arg-type]
        candidates=candidates if isinstance(candidates, numbers.Number) else len(rivals),  # type: ignore[arg-type]
        max_error=max_error,
        coverage=coverage,
        max_examples=max_examples,
        assume_independent=assume_independent,
        seed=seed,
    )
    known = evaluations_of(run_folder(model) if trainer_state is None else trainer_state)
    made = _promised(model, held_out, rivals, training_data, known, config, options)
    return dataclasses.replace(made, seconds=time.perf_counter() - began)


def _promised(
    model: nn.Module,
    held_out: Any,
    rivals: Mapping[str, tuple[nn.Module, ErrorFunction | None]],
    training_data: Any,
    known: Evaluations | None,
    config: PromiseConfig,
    options: Mapping[str, Any],
) -> Promise:
    rule = rule_of(config)
    if rule is not None and (len(rivals) > 1 or rivals[GIVEN][1] is not None):
        raise ValueError(
            "max_error and coverage go by the confidence of one model in its classes: leave out error_fn, and give "
            "candidates as a number."
        )
    found = {name: examined(*rival, held_out, config, options) for name, rival in rivals.items()}
    seen = found[GIVEN]
    if config.candidates > seen.size:
        raise ValueError(
            f"candidates={config.candidates} were compared on {seen.size} held-out examples: expected at most as many "
            "as there are examples, or one of them looks good by chance. Give more examples, or fewer candidates."
        )
    if rule == ABSTAIN and not seen.binary:
        raise ValueError(
            f"max_error limits the share of wrong answers, and loss={config.loss and config.loss.value!r} counts "
            "something else: leave loss out, or promise the two in two calls, with half of δ each."
        )
    copies = check_copies(seen.prints, assume_independent=config.assume_independent)
    overlap = None
    if training_data is not None:
        trained = prints_of(model, training_data, config, options, names=seen.names)
        overlap = check_overlap(seen.prints, trained, assume_independent=config.assume_independent)
    chosen = check_selection(known, candidates=config.candidates, mean_loss=seen.own_loss, accuracy=seen.accuracy)
    if chosen is not None:
        warnings.warn(chosen, stacklevel=4)
    share = config.delta / (config.candidates * PARTS[rule])
    bounds = {name: _bound(one, share) for name, one in found.items()}
    best = min(bounds, key=lambda name: bounds[name])
    fields = ruled(model, seen, training_data, config, share, options)
    notes = [*_notes(found[best], held_out, training_data), overlap, copies, chosen, *fields.pop("notes")]
    winner = rivals[best][0]
    return Promise(
        error_bound=bounds[best],
        **_losses(found[best]),
        delta=config.delta,
        share=share,
        num_candidates=config.candidates,
        subject="the model" if len(rivals) == 1 else f"the candidate {best!r},",
        notes=tuple(note for note in notes if note),
        config=config.to_dict(),
        # of the candidate that was chosen; of the model as it was given, the entrance makes it
        origin={} if winner is model else origin_of(winner, held_out),
        **fields,
    )


def _rivals(candidates: Any, model: nn.Module, error_fn: ErrorFunction | None) -> dict[str, Any]:
    """The model, and what is compared with it, by name: each a model with an error function or None."""
    if error_fn is not None and not callable(error_fn):
        raise TypeError(
            "error_fn must be a function error_fn(model, batch) -> one error in [0, 1] for each example; got "
            f"{type(error_fn).__name__}."
        )
    given = {GIVEN: (model, error_fn)}
    if isinstance(candidates, numbers.Number):  # whether it is a count, the settings say
        return given
    named = candidates if isinstance(candidates, Mapping) else None
    if named is None and isinstance(candidates, (list, tuple)):
        named = {f"candidate {i}": other for i, other in enumerate(candidates, start=1)}
    if named is None or not all(callable(other) for other in named.values()):
        what = type(candidates).__name__ if named is None else ", ".join(type(o).__name__ for o in named.values())
        raise TypeError(
            "candidates must be their number, or the other candidates in a list or by name: models, or functions "
            f"error_fn(model, batch) of a threshold or a prompt; got {what}. Load models first."
        )
    if GIVEN in named:
        raise ValueError(f"{GIVEN!r} is the name of the model itself among the candidates: choose another name.")
    return given | {
        str(name): (other, error_fn) if isinstance(other, nn.Module) else (model, other)
        for name, other in named.items()
    }


def _bound(seen: Seen, share: float) -> float:
    if seen.binary:
        return exact_error_bound(int(seen.losses.sum()), seen.size, share)
    return betting_bound(seen.losses, share)


def _losses(seen: Seen) -> dict[str, Any]:
    loss = "error_fn" if seen.form is None else (seen.loss or PromisedLoss.ZERO_ONE).value
    return {
        "mean_loss": float(seen.losses.mean()),
        "num_errors": int(seen.losses.sum()) if seen.binary else None,
        "num_examples": seen.size,
        "method": EXACT if seen.binary else BETTING,
        "loss": loss,
        "unit": seen.unit,
    }


def _notes(seen: Seen, held_out: Any, training_data: Any) -> list[str]:
    notes = list(seen.notes)
    if training_data is None:
        notes.append(
            "Whether the model was trained on these examples was not looked at: give training_data to have it done."
        )
    if (number := left_out(held_out)) > 0:
        notes.append(f"The loader's drop_last left out {number} examples: the promise is made from the others.")
    return notes
