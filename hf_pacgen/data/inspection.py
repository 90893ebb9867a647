"""What the loss of a first batch tells: which loss it is, and what it is a mean of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_pacgen.data.contents import count_examples, labels_of, take
from hf_pacgen.data.losses import is_causal
from hf_pacgen.data.own_loss import ModelLoss, OwnLoss
from hf_pacgen.data.recognition import CrossEntropy, logits_of, recognize, tolerance_of
from hf_pacgen.data.units import Cut, UnitRule, cuts, find_rule, rules
from hf_pacgen.distributed.processes import send_to_device

if TYPE_CHECKING:
    from hf_pacgen.data.objective import Objective

__all__ = ["REFUSALS", "Finding", "inspect_loss"]

REFUSALS = (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError)
"""What a model may raise on a batch that is not of the form it was made for, such as one of a single example."""


@dataclass(frozen=True)
class Finding:
    """What an inspection found.

    Attributes:
        entropy: the cross-entropy that the loss is, if it is one.
        rule: how units are counted otherwise.
        twin: the model's own loss, where another loss is equal to it.
        sentence: of the check.
        notes: for the result.
    """

    entropy: CrossEntropy | None = None
    rule: UnitRule | None = None
    twin: OwnLoss | None = None
    sentence: str = ""
    notes: tuple[str, ...] = ()


def inspect_loss(objective: Objective, loss: Tensor, outputs: Any, batch: Any, index: int) -> Finding:
    """What the loss of a whole batch is, by the model's own logits, and else by its parts."""
    labels = labels_of(batch, objective.own.label_names)
    logits = logits_of(outputs, labels)
    twin: ModelLoss | None = None
    if logits is None and not isinstance(objective.own, ModelLoss):
        twin, own = ModelLoss(objective.own.label_names, prepared_by=objective.own), objective.own
        found = _loss_on(objective, twin, batch, index)
        if found is not None and math.isclose(found[0].item(), loss.item(), rel_tol=tolerance_of(loss) / 10):
            loss, logits = found[0], logits_of(found[1], labels)
        else:
            twin = None
    causal = is_causal(objective.model)
    entropy = None
    if logits is not None:
        source = twin or objective.own
        key = next(name for name in source.label_names if batch.get(name) is labels)

        def again(relabeled: Tensor, whole: Mapping[str, Any] = batch) -> tuple[Tensor, Tensor] | None:
            value, new_outputs = source(objective.model, source.prepare({**whole, key: relabeled}))
            new_logits = logits_of(new_outputs, relabeled)
            return None if value is None or new_logits is None else (value, new_logits)

        entropy = recognize(loss, logits, labels, causal=causal, again=again)
        if entropy is not None and entropy.weights is None:
            entropy = _among_classes(entropy, loss, logits, labels, batch, again, causal=causal)
    if entropy is not None:
        return _recognized(entropy, twin, own.name if twin is not None else "")
    return _by_parts(objective, loss, batch, index, labels, causal)


def _among_classes(
    entropy: CrossEntropy,
    loss: Tensor,
    logits: Tensor,
    labels: Any,
    batch: Mapping[str, Any],
    again: Callable[..., tuple[Tensor, Tensor] | None],
    *,
    causal: bool,
) -> CrossEntropy:
    """What a cross-entropy is if its labels are of several classes: a mean over one class hides class weights."""
    pair = entropy.pairs(logits.detach(), labels)
    # of labels that are ignored, made-up ones would show nothing
    if pair is None or entropy.ignored or len(pair[1].unique()) > 1:
        return entropy
    size = count_examples(batch)
    twice = take(batch, [*range(size), *range(size)], size)
    relabeled = torch.cat([labels, labels]).contiguous()
    counted = relabeled == pair[1][0]
    relabeled[counted] = torch.arange(int(counted.sum()), device=labels.device).to(labels) % logits.shape[-1]
    try:
        made = again(relabeled, twice)
        if made is None:
            return entropy
        found = recognize(*made, relabeled, causal=causal, again=lambda other: again(other, twice))
    except REFUSALS:
        return entropy
    # without weights, what the labels as they are have shown says more, such as which of them are ignored
    if found is None or found.weights is None or not found.explains(loss, logits, labels):
        return entropy
    return found


def _recognized(entropy: CrossEntropy, twin: ModelLoss | None, name: str) -> Finding:
    what, notes = entropy.kind.value, []
    if entropy.weights is not None:
        what += " with class weights"
        notes.append(
            "The loss is a cross-entropy with class weights: a label counts as much as its class weighs, so that the "
            "loss does not depend on the batching."
        )
    if entropy.adds:
        notes.append(
            "The loss of a batch is a sum over its labels and not their mean. Here it is taken for each label, so that "
            "it does not depend on the batching; the gradient of a step is larger by the number of labels in it."
        )
    equal = f", and equals {name}" if twin is not None else ""
    sentence = f"equals the {what} rebuilt from the model's logits{equal}"
    return Finding(entropy, None, twin, sentence, tuple(notes))


def _by_parts(objective: Objective, loss: Tensor, batch: Any, index: int, labels: Any, causal: bool) -> Finding:
    config = getattr(objective.model, "config", None)
    known = (getattr(config, "semantic_loss_ignore_index", None), getattr(config, "pad_token_id", None))
    ignored = [number for number in known if isinstance(number, int) and number >= 0]
    candidates = rules(objective.own.label_names, causal=causal, ignored=ignored)
    losses = _losses(objective, batch, index)
    tolerance = 2e-2 if objective.low_precision else tolerance_of(loss)
    if losses is None:
        sentence = "could not be compared with its parts: the batch has one example, or cannot be told apart"
        return Finding(rule=candidates[0], sentence=sentence)
    rule = find_rule(candidates, losses, tolerance)
    if rule is None:
        cut, whole, parts = losses[0]
        sizes = [count_examples(part) for part in cut.parts]
        shown = " and ".join(f"{value:.6g} ({size})" for value, size in zip(parts, sizes, strict=True))
        note = (
            f"The loss depends on how the data is cut into batches: it is {whole:.6g} on a batch of "
            f"{count_examples(cut.whole)} and {shown} on its parts, which no weights of labels or examples explain. "
            "The numbers are those of batches as they were taken; take them as in training (batch_size)."
        )
        unpooled = UnitRule(candidates[0].name, candidates[0].count, pools=False)
        return Finding(rule=unpooled, sentence="is not the mean of its parts", notes=(note,))
    notes: tuple[str, ...] = ()
    if rule.adds:
        notes = (
            "The loss of a batch is a sum over its examples and not their mean. Here it is taken for each example, so "
            "that it does not depend on the batching; the gradient of a step is larger by the number of its examples.",
        )
    how = "sum" if rule.adds else "mean"
    of_tokens = isinstance(labels, Tensor) and labels.ndim > 1 and not labels.is_floating_point()
    what = rule.name if of_tokens or rule.adds else "examples"
    return Finding(rule=rule, sentence=f"is the {how} of its parts, weighted by {what}", notes=notes)


def _losses(objective: Objective, batch: Any, index: int) -> list[tuple[Cut, float, Sequence[float]]] | None:
    """The losses of a batch and of its parts, in several ways; None where no part has one."""
    found: list[tuple[Cut, float, Sequence[float]]] = []
    for cut in _cuts(objective, batch, index):
        with torch.no_grad():
            taken = [_loss_on(objective, objective.own, part, index) for part in (cut.whole, *cut.parts)]
        values = [math.nan if one is None else one[0].item() for one in taken]
        if math.isfinite(values[0]) or len(found) == 0:
            found.append((cut, values[0], values[1:]))
    return found or None


def _cuts(objective: Objective, batch: Any, index: int) -> list[Cut]:
    batches = objective.batches
    known = None if batches.indices is None else len(batches.indices[index])
    if known is None or known == count_examples(batch):
        return list(cuts(batch, count_examples(batch), objective.own.label_names))
    # rows of a batch that are no examples, such as pairs one half below the other: the examples are put together anew
    made = batches.parts(index)
    if made is None:
        return []
    whole, *parts = (send_to_device(one, objective.device) for one in (made[0], *made[1]))
    return [Cut(whole, parts)]


def _loss_on(objective: Objective, own: OwnLoss, batch: Any, index: int) -> tuple[Tensor, Any] | None:
    """Another batch's loss, which may not be of a form that the model was made for; None where it refuses."""
    if not isinstance(batch, Mapping):
        return None
    try:
        loss, outputs = own(objective.model, own.prepare(dict(batch)))
    except REFUSALS:
        return None
    finally:
        objective.rows.forget()
    return None if loss is None else (loss, outputs)
