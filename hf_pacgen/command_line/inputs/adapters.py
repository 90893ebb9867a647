"""Adapters of PEFT: small weights beside a base model, which their adapter_config.json names."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers.models.auto import modeling_auto

from hf_pacgen.command_line.quiet import quiet
from hf_pacgen.errors import InputError, few, refusing
from hf_pacgen.model.fingerprint import weights_fingerprint

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
HEADS: dict[str, Mapping[str, str | Sequence[str]]] = {
    "SEQ_CLS": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "TOKEN_CLS": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "QUESTION_ANS": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "CAUSAL_LM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "SEQ_2_SEQ_LM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
"""Classes of models by the task types of PEFT; others leave the base as its own configuration has it."""
LABELED = ("classifier", "score", "head")
"""What the module of a head with a row for every label is called."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A saved adapter.  ``settings`` are those of its adapter_config.json."""

    name: str
    base: str  # a folder or an id on the hub
    revision: str | None  # of the adapter itself
    settings: dict[str, Any]

    @property
    def base_source(self) -> dict[str, Any]:
        """What a ``from_pretrained`` of the base is told of its version."""
        return {"revision": self.settings.get("revision")}

    def weights(self) -> dict[str, Any]:
        """The adapter's weights by the names they are saved under."""
        from peft.utils.save_and_load import load_peft_weights

        options: dict[str, Any] = (
            {} if self.revision is None or Path(self.name).is_dir() else {"revision": self.revision}
        )
        with quiet(), refusing(f"The weights of the adapter {self.name!r} cannot be read", "Save it again."):
            return load_peft_weights(self.name, device="cpu", **options)

    def head_of(self, config: Any) -> None:
        """Let the base's configuration name the class of model, and the number of labels, that were adapted."""
        head = (self.settings.get("auto_mapping") or {}).get("base_model_class")
        if head is None:
            names = HEADS.get(str(self.settings.get("task_type")), {}).get(config.model_type)
            head = names if names is None or isinstance(names, str) else names[0]
        if head is not None:
            config.architectures = [head]
        count = _num_labels(self.weights()) if str(head).endswith("Classification") else None
        if count is not None and count != config.num_labels:  # else the names of the labels would be lost
            config.num_labels = count


def find_adapter(name: str, *, revision: str | None = None, base: str | None = None) -> Adapter | None:
    """The adapter of that name; None where it is none, as of a whole model.

    Args:
        base: the model to load it on, in place of the one it names.

    Raises:
        InputError: PEFT is not installed, or there is no base.
    """
    file = _config_file(name, revision)
    if file is None:
        if base is not None:
            raise InputError(
                f"--base-model {base!r} is for adapters of PEFT, and {name!r} is none: it has no {CONFIG}. Leave it "
                "out."
            )
        return None
    _require_peft(name)
    with refusing(f"{str(file)!r} cannot be read", "Save the adapter again."):
        settings = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or "peft_type" not in settings:
            raise ValueError("it has no 'peft_type', as PEFT's save_pretrained() writes it")
    named = base or settings.get("base_model_name_or_path")
    remedy = "Name it with --base-model (a folder, or an id on the Hugging Face hub)."
    if not named:
        raise InputError(f"The adapter {name!r} does not say what its base model is. {remedy}")
    is_path = os.path.isabs(named) or named.startswith((".", "~")) or named.count("/") > 1
    if is_path and not Path(named).is_dir():
        says = "--base-model" if base else CONFIG
        raise InputError(f"The base model of the adapter {name!r} is not there: {says} names {named!r}. {remedy}")
    return Adapter(name=name, base=named, revision=revision, settings=settings)


def _config_file(name: str, revision: str | None) -> Path | None:
    folder = Path(name)
    if folder.is_dir():
        # a merged model has both files, and is whole
        is_adapter = (folder / CONFIG).is_file() and not (folder / "config.json").is_file()
        return folder / CONFIG if is_adapter else None
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        return None  # refused where a model is loaded
    from transformers.utils import cached_file

    missing: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False, "revision": revision}
    missing |= {"_raise_exceptions_for_connection_errors": False, "_raise_exceptions_for_gated_repo": False}
    with quiet():
        try:
            if cached_file(name, "config.json", **missing) is not None:
                return None
            found = cached_file(name, CONFIG, **missing)
        except OSError:  # no such repository: said where the model is loaded
            return None
    return None if found is None else Path(found)


def _require_peft(name: str) -> None:
    try:
        import peft  # noqa: F401
    except ImportError:
        raise InputError(
            f"The model {name!r} is an adapter of PEFT, which is not installed: pip install peft."
        ) from None


def _num_labels(weights: Mapping[str, Any]) -> int | None:
    # rows of the last matrix of the head, which PEFT saves whole
    rows = [
        tensor.shape[0]
        for name, tensor in weights.items()
        if tensor.ndim == 2 and "lora_" not in name and any(part in LABELED for part in name.split("."))
    ]
    return rows[-1] if rows else None


@dataclass
class Bases:
    """The base that was loaded last, for the next adapter of the same one."""

    key: tuple[Any, ...] | None = None
    loaded: tuple[Any, ...] = ()  # the model, and what is to be said of it
    fingerprint: str | None = None
    loads: int = 0

    def get(self, key: tuple[Any, ...], load: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        """A model to put an adapter on: new modules around the weights of the base, which is loaded once.

        An adapter may write into weights of the base (biases, embeddings): then the next one gets it anew.

        Args:
            key: what tells one base from another.
            load: gives the model, and whatever else is to be given back with it.
        """
        if not self.loaded or key != self.key or weights_fingerprint(self.loaded[0]) != self.fingerprint:
            self.loaded = ()  # before the next is loaded: two may not find room
            self.key, self.loaded, self.loads = key, load(), self.loads + 1
            self.fingerprint = weights_fingerprint(self.loaded[0])
        base, *said = self.loaded
        tensors = (*base.parameters(), *base.buffers())
        return copy.deepcopy(base, {id(tensor): tensor for tensor in tensors}), *said


def put_on(adapter: Adapter, base: nn.Module) -> nn.Module:
    """The base with the adapter, whose weights alone are trainable.

    Raises:
        InputError: the adapter does not fit, or lacks weights.
    """
    from peft import PeftModel, get_peft_model_state_dict

    failed = f"The adapter {adapter.name!r} cannot be put on its base {adapter.base!r}"
    options: dict[str, Any] = (
        {} if adapter.revision is None or Path(adapter.name).is_dir() else {"revision": adapter.revision}
    )
    saved = adapter.weights()
    with quiet(), warnings.catch_warnings(), refusing(failed, "Give the base that it was trained on."):
        warnings.simplefilter("ignore")  # what is missing is said below, in words
        model: Any = PeftModel.from_pretrained(base, adapter.name, is_trainable=True, **options)
        # PEFT leaves what it does not find at random, with a warning
        expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    lacking = sorted(set(expected) - set(saved))
    if lacking:
        raise InputError(
            f"The adapter {adapter.name!r} lacks weights that its {CONFIG} asks for: {few(lacking)}. Expected all "
            "that PEFT's save_pretrained() writes. Save it again."
        )
    return model


def holds(saved: Mapping[str, Any], parameter: str) -> bool:
    """Whether an adapter's weights have a parameter of the base: a head that was trained with it."""
    return f"{PREFIX}{parameter}" in saved
