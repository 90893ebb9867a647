"""What would make a certificate invalid, as far as it can be seen: each is refused with its remedy."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler

from hf_pacgen.certify.priors import Prior
from hf_pacgen.data.objective import Objective
from hf_pacgen.errors import VOUCH, listing

SHORT_PIECE = 64  # tokens in a row below which texts are not usually cut into pieces
MOST_REPEATED = 0.05  # share of examples that may equal another one exactly before they are taken for copies


@contextmanager
def certified_parameters(model: nn.Module, patterns: Sequence[str] | None) -> Iterator[dict[str, nn.Parameter]]:
    """The trainable parameters that match a shell pattern or a module's name; the others are frozen meanwhile."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not own:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameters to certify: expected some with requires_grad=True. "
            "Unfreeze what was trained."
        )
    matched: set[str] = set(own if patterns is None else ())
    for pattern in patterns or ():
        names = {name for name in own if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")}
        if not names:
            raise ValueError(f"parameters={pattern!r} matches no trainable parameter; there are {listing(own)}.")
        matched |= names
    try:
        # frozen ones need no gradients, so curvature and refinement do not see them
        for name, parameter in own.items():
            parameter.requires_grad_(name in matched)
        yield {name: parameter for name, parameter in own.items() if name in matched}
    finally:
        for parameter in own.values():
            parameter.requires_grad_(True)


def check_batch_norm(model: nn.Module) -> None:
    """Refuse normalization by the statistics of a batch."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            mode = "in train mode" if module.training else "without running statistics"
            raise ValueError(
                f"The batch-norm {name!r} is {mode}, so the error of an example depends on the others of its batch. "
                "Call model.eval(), with running statistics that were not fitted to these examples (freeze them at "
                "the prior's), or use another normalization."
            )


def check_adapters(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Refuse adapters that are merged into the weights below them, or switched off: their noise would do nothing."""
    certified = {id(tensor) for tensor in parameters.values()}
    for name, module in model.named_modules():
        # a layer of PEFT; one that is merged has what was learned in its frozen weights, which no prior pays for
        if not hasattr(module, "get_base_layer"):
            continue
        base = {id(p) for p in module.get_base_layer().parameters()}  # type: ignore[operator]
        own = [n for n, p in module.named_parameters() if id(p) in certified and id(p) not in base]
        states = {"merged into its weights": "merged", "switched off": "disable_adapters"}
        state = next((words for words, flag in states.items() if getattr(module, flag, False) is True), None)
        if own and state is not None:
            remedy = "model.unmerge_adapter()" if state.startswith("merged") else "model.enable_adapter_layers()"
            raise ValueError(
                f"The loss does not depend on the adapter of {name!r}, which is {state}: noise on {own[0]!r} changes "
                f"nothing, and what was learned is not paid for. Call {remedy} before; a model that has its adapter "
                "merged for good is certified as a whole, with the pretrained model as prior."
            )


def check_sampling(data: Any) -> None:
    """Refuse a loader that draws examples with replacement, or by weights."""
    # a loader's batch_sampler of the user's own is not looked into
    sampler = data.sampler if isinstance(data, DataLoader) else None
    if isinstance(sampler, WeightedRandomSampler) or (isinstance(sampler, RandomSampler) and sampler.replacement):
        raise ValueError(
            f"The DataLoader draws examples with replacement or by weights ({type(sampler).__name__}), so they are not "
            "independent examples of the distribution. Use a loader that goes over every example once."
        )


def check_repeats(fingerprints: Sequence[bytes], *, assume_independent: bool) -> str | None:
    """Refuse data in which many examples are copies; a few may be draws that happen to be equal: a sentence then."""
    # short texts and small images may well be drawn twice, so a few are no proof of copies
    repeated = len(fingerprints) - len(set(fingerprints))
    if not repeated:
        return None
    if repeated > MOST_REPEATED * len(fingerprints) and not assume_independent:
        raise ValueError(
            f"{repeated:,} of the {len(fingerprints):,} examples equal an earlier one, so their number is not that of "
            f"independent examples. Remove the copies; if equal examples were drawn independently: {VOUCH}."
        )
    return f"{repeated:,} of the examples equal an earlier one; they count as drawn independently."


def _tokens(objective: Objective, batch: Any) -> tuple[Tensor, Tensor] | None:
    # those of a causal language model, (rows, length), and which of them are no padding
    tokens = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not objective.kind.facts or not isinstance(tokens, Tensor) or tokens.ndim != 2:
        return None
    mask = batch.get("attention_mask")
    fits = isinstance(mask, Tensor) and mask.shape == tokens.shape
    return tokens, mask.bool() if fits else torch.ones_like(tokens).bool()


def check_packing(objective: Objective, batch: Any, index: int, *, assume_independent: bool) -> None:
    """Refuse rows that hold several documents: the independent examples of a language model are documents."""
    # seen by positions that start anew within a row, or by a token between others that ends a document
    if (found := _tokens(objective, batch)) is None or assume_independent:
        return
    if holds_several(objective.model, batch, *found, causal=True):
        raise ValueError(
            f"Batch {index} has rows of several documents (positions start anew, or a token that ends a document "
            "stands between others). Pieces of one document depend on each other: the independent examples of a "
            f"language model are documents. Give one document a row; if rows are independent: {VOUCH}."
        )


def holds_several(model: nn.Module, batch: Mapping[str, Any], tokens: Tensor, seen: Tensor, *, causal: bool) -> bool:
    """Whether rows hold several documents, by their positions or, of a ``causal`` model, by tokens that end one."""
    positions = batch.get("position_ids")
    packed = "seq_idx" in batch or "cu_seq_lens_q" in batch
    if isinstance(positions, Tensor) and positions.shape == tokens.shape:
        packed |= any(bool((row[keep].diff() < 0).any()) for row, keep in zip(positions, seen, strict=True))
    if not causal:
        return packed
    ends = getattr(getattr(model, "config", None), "eos_token_id", None)
    ends = torch.tensor([e for e in (ends if isinstance(ends, (list, tuple)) else [ends]) if isinstance(e, int)])
    for row, keep in zip(tokens, seen, strict=True):
        # an end token before the first or after the last other token is where it belongs
        text = (~torch.isin(row[keep].cpu(), ends)).nonzero().flatten()
        packed |= len(text) > 0 and len(text) < int(text[-1] - text[0]) + 1
    return packed


def unpadded_length(objective: Objective, batch: Any) -> int | None:
    """The common length of a causal language model's rows, or None where some are padded."""
    found = _tokens(objective, batch)
    return found[0].shape[1] if found is not None and bool(found[1].all()) else None


def doubt_pieces(lengths: Sequence[int | None]) -> str | None:
    """A sentence, and a warning, where all rows have one length, as pieces of a long text have."""
    first = lengths[0]
    if first is None or first < SHORT_PIECE or any(length != first for length in lengths):
        return None
    sentence = (
        f"All rows have exactly {first} tokens: if they are pieces of longer documents they depend on each other, and "
        "the certificate is not valid. Give one document a row, cut at the end."
    )
    warnings.warn(sentence, stacklevel=3)
    return sentence


def given_weights(model: nn.Module, certified: Mapping[str, Tensor], prior: Prior) -> str | None:
    """A sentence on frozen weights that the prior does not have, so that nobody can see where they come from."""
    names = [n for n, p in model.named_parameters() if not p.requires_grad and n not in certified]
    unknown = [name for name in names if name not in prior.state]
    if not unknown:
        return None
    return (
        f"{len(unknown)} frozen tensors, such as {unknown[0]!r}, count as given: the certificate is valid only if they "
        "were not fitted to these examples."
    )


def check_sizes(sizes: Sequence[int]) -> None:
    """Refuse batches without examples."""
    empty = [index for index, size in enumerate(sizes) if size == 0]
    if empty:
        raise ValueError(
            f"Batch {empty[0]} of {len(sizes):,} has no examples: expected at least one in every batch. Leave it out."
        )


def doubts(model: nn.Module, trainable: Sequence[str], certified: Mapping[str, Tensor], prior: Prior) -> Iterator[str]:
    """Sentences on what the certificate takes for granted because it cannot be seen."""
    # weights that were trained but are the same in prior and posterior would be part of the prior
    unknown = [name for name in trainable if name not in certified and name not in prior.state]
    if unknown:
        yield (
            f"{len(unknown)} trainable parameters, such as {unknown[0]!r}, are not certified and not in the prior: "
            "the certificate is valid only if they were not trained on these examples. Freeze what was not trained."
        )
    for name, module in model.named_modules():
        fitted = isinstance(module, _BatchNorm) and module.num_batches_tracked is not None
        if fitted and module.num_batches_tracked and f"{name}.running_mean" not in prior.state:
            yield (
                f"The prior does not hold the batch-norm statistics of {name!r}: the certificate is valid only if they "
                "were not fitted to these examples. Give the prior as a model with its statistics."
            )
            break  # one sentence will do for all of them
