"""The center of the prior, from what a user gives, and the checks that it did not see the data."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_pacgen.certify.likeness import are_alike
from hf_pacgen.certify.records import check_record
from hf_pacgen.certify.splits import HeldOutPrior, check_overlap
from hf_pacgen.errors import PRIOR_VOUCH, listing
from hf_pacgen.model.state import unwrap

PriorLike = Any  # "zero", weights by name, a model, a folder, a HeldOutPrior or a Prior
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Where a prior is centered."""

    description: str  # for people and for the certificate
    state: Mapping[str, Tensor]  # weights and buffers by name
    zeros: bool = False  # certified weights that ``state`` lacks are centered on 0
    held_out: HeldOutPrior | None = None  # the split, where the prior was trained on a part of the data
    notes: tuple[str, ...] = ()  # what a user should know, in sentences
    folder: Path | None = None  # where the weights were read from

    def check_unseen(
        self,
        prints: Sequence[bytes],
        model: nn.Module,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        *,
        assume_independent: bool = False,
    ) -> str | None:
        """Raise if some of the examples have trained the prior; what :func:`check_overlap` says otherwise."""
        if self.held_out is None:
            return None
        return check_overlap(self.held_out, prints, model, collate_fn, assume_independent=assume_independent)

    def gives_all(self, parameters: Mapping[str, Tensor]) -> bool:
        """Whether the prior has all certified weights, so that its center is a model that somebody made."""
        return all(name in self.state for name in parameters)


def resolve_prior(
    prior: PriorLike,
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    *,
    assume_independent: bool = False,
    prints: Collection[str | None] = (),
    num_examples: int | None = None,
) -> Prior:
    """The prior for the certified ``parameters`` of a trained model, or an error that says why it cannot be one.

    ``prints`` and ``num_examples`` are what :func:`check_record` asks of the examples.
    """
    resolved = _read(prior, model)
    if resolved.folder is not None:
        known = {"prints": prints, "num_examples": num_examples, "assume_independent": assume_independent}
        note = check_record(resolved.folder, model, **cast(Any, known))
        resolved = replace(resolved, notes=resolved.notes if note is None else (*resolved.notes, note))
    center = {name: resolved.state[name] for name in parameters if name in resolved.state}
    missing = [name for name in parameters if name not in center]
    if missing and not resolved.zeros:
        raise ValueError(
            f"The prior lacks weights that are to be certified: {listing(missing)}; it has "
            f"{listing(resolved.state) or 'none'}. Give the weights by the names of model.named_parameters()."
        )
    unknown = set(resolved.state) - {*model.state_dict(keep_vars=True), *dict(model.named_parameters())}
    if unknown and not isinstance(prior, Prior):
        raise ValueError(
            f"The prior has weights that the model lacks: {listing(sorted(unknown))}. Give a prior of the same "
            "architecture, by the names of model.named_parameters()."
        )
    for name, value in center.items():
        _check_center(name, value, parameters[name])
    _check_rest(resolved, model, parameters)
    # equal weights make the KL as small as can be, which is too good to be independent of the data
    if resolved.held_out is None and not assume_independent and are_alike(center, parameters):
        raise ValueError(
            f"The prior ({resolved.description}) equals the trained weights, so it depends on the data they were "
            "trained on (most of them differ by no more than the rounding to 16 bits). Give the weights from before "
            "the training, or 'zero'; a prior that was trained on other data comes from train_prior(); freeze weights "
            "that were not trained, with requires_grad_(False). If the prior has never seen the data: "
            f"{PRIOR_VOUCH}."
        )
    return resolved


def _read(prior: PriorLike, model: nn.Module) -> Prior:
    if isinstance(prior, Prior):
        return prior
    if isinstance(prior, HeldOutPrior):
        count = f"{prior.num_prior_examples:,} {'batches' if isinstance(prior.prior_data, list) else 'examples'}"
        return Prior(description=f"weights trained on {count} held out", state=prior.weights, held_out=prior)
    if isinstance(prior, nn.Module):
        other = unwrap(prior)
        if other is model:
            raise ValueError(
                "The prior is the trained model itself, which depends on the data. Give the model it was before its "
                "training, as a copy (copy.deepcopy) or a folder, or 'zero'."
            )
        source = getattr(getattr(other, "config", None), "_name_or_path", None)
        folder = Path(source) if source and Path(source).is_dir() else None
        return Prior(description=f"weights of a {type(other).__name__}", state=_state(other), folder=folder)
    if isinstance(prior, Mapping):
        wrong = [name for name, value in prior.items() if not isinstance(value, Tensor)]
        if wrong or not prior:
            raise ValueError(f"A prior by name must hold tensors; {listing(wrong) or 'it is empty'}.")
        return Prior(description="initial weights", state=prior)
    if isinstance(prior, (str, os.PathLike)):
        if prior == "zero":
            return Prior(description="zero", state={}, zeros=True)
        return _from_folder(Path(prior), model)
    raise TypeError(
        "prior must be 'zero', the initial weights by name, a model, its folder, or what train_prior() returned; "
        f"got {type(prior).__name__}."
    )


def _from_folder(folder: Path, model: nn.Module) -> Prior:
    """The weights of a saved model; what it lacks, a new head or an adapter, is centered on 0."""
    if not folder.is_dir():
        raise ValueError(
            f"prior {str(folder)!r} is neither 'zero' nor a folder. "
            "Give 'zero', a model, its folder, what train_prior() returned, or the initial weights themselves: a dict "
            "of copies made before the training."
        )
    adapter = hasattr(model, "peft_config")
    base: Any = model.get_base_model() if adapter else model  # type: ignore[operator]
    pretrained = isinstance(base, PreTrainedModel) and (folder / "config.json").is_file()
    # from_pretrained() knows shards, and names of older checkpoints
    state = _load_pretrained(folder, base) if pretrained else _load_file(folder)
    if adapter:  # names of the adapted model, by those of its base
        known = {_base_name(name): name for name in model.state_dict()}
        state = {known[name]: value for name, value in state.items() if name in known}
    own = dict(model.named_parameters())
    new = [name for name, parameter in own.items() if parameter.requires_grad and name not in state]
    # a model of another kind would pass for one whose weights are all new
    if not adapter and not any(name in state for name in own):
        raise ValueError(
            f"The prior {str(folder)!r} has none of the model's weights, such as {listing(own)}. "
            "Give the folder of a model of the same architecture."
        )
    lacks = f"The prior's folder lacks the certified weights {listing(new)}, which are centered on 0."
    description = f"pretrained weights of {folder.name}"
    return Prior(description=description, state=state, zeros=True, notes=(lacks,) if new else (), folder=folder)


def _load_pretrained(folder: Path, base: PreTrainedModel) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):  # new heads are initialized at random
        loaded, report = cast(Any, type(base)).from_pretrained(
            folder, config=base.config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    if report["mismatched_keys"]:  # would be replaced by random weights, as if the prior had them
        name, theirs, ours = sorted(report["mismatched_keys"])[0]
        raise ValueError(
            f"The prior's {name!r} must have shape {tuple(ours)}, like the model's; {folder.name} has {tuple(theirs)}."
        )
    # what the folder lacks was initialized at random
    return {name: value for name, value in _state(loaded).items() if name not in report["missing_keys"]}


def _load_file(folder: Path) -> dict[str, Tensor]:
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"The prior's folder {str(folder)!r} has no weights: expected {' or '.join(WEIGHT_FILES)}.")
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    # weights_only: a prior from elsewhere may not run code
    return torch.load(file, map_location="cpu", weights_only=True)


def _base_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {**{name: p.detach() for name, p in model.named_parameters()}, **model.state_dict()}


def _check_center(name: str, value: Tensor, parameter: Tensor) -> None:
    if value.shape != parameter.shape:
        shapes = f"must have shape {tuple(parameter.shape)}, like the model's; got {tuple(value.shape)}"
        raise ValueError(f"The prior's {name!r} {shapes}.")
    if value.dtype not in FLOATS:
        raise ValueError(
            f"The prior's {name!r} has the type {str(value.dtype).removeprefix('torch.')}: expected floating-point "
            "weights of at least 16 bits. Give them as they were before they were quantized."
        )
    if value.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr():
        raise ValueError(
            f"The prior's {name!r} shares its memory with the trained model, so it was trained with it. Copy the "
            "initial weights before the training: {name: p.detach().clone() for name, p in model.named_parameters()}."
        )
    if not bool(value.isfinite().all()):
        raise ValueError(f"The prior's {name!r} contains NaN or infinity: expected finite weights.")


def _check_rest(prior: Prior, model: nn.Module, certified: Mapping[str, Tensor]) -> None:
    """What is not certified is part of every classifier that the prior knows, so it must be the same in both."""
    names = {id(tensor) for tensor in certified.values()}  # not names: tied weights have several
    for name, tensor in model.state_dict(keep_vars=True).items():
        theirs = prior.state.get(name)
        if id(tensor) in names or theirs is None or theirs.shape != tensor.shape or not tensor.is_floating_point():
            continue
        if not torch.equal(theirs.to(tensor), tensor.detach()):
            kind = "weights" if isinstance(tensor, nn.Parameter) else "statistics (a buffer)"
            raise ValueError(
                f"The {kind} {name!r} are not certified, and differ from the prior's: they were fitted to data. "
                "Certify these weights too, or keep them as the prior has them while the others are trained."
            )
