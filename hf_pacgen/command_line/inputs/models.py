"""A model by name, with the head for its task."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_pacgen.command_line.inputs.tasks import Task
from hf_pacgen.command_line.quiet import quiet
from hf_pacgen.config.settings import Config, option
from hf_pacgen.errors import InputError, describe

__all__ = ["ModelArguments", "Precision", "choose_device", "load_config", "load_model"]


class Precision(str, Enum):
    """Data type of the weights; ``auto`` is the one they were saved in."""

    AUTO = "auto"
    FLOAT64 = "float64"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@dataclass(frozen=True, kw_only=True)
class ModelArguments(Config):
    """How the model is loaded."""

    _argument_group_name = "model"

    task: Task | None = option(None, "What the model is trained for. By default read from its config.json.")
    revision: str | None = option(None, "Branch, tag or commit of a model on the hub.")
    dtype: Precision = option(
        Precision.FLOAT32, "Data type of the weights; 'auto' is the one they were saved in. float32 is the most exact."
    )
    device: str = option("auto", "Device to compute on, such as 'cpu' or 'cuda:1'. 'auto' is a GPU if there is one.")
    trust_remote_code: bool = option(False, "Run model code that comes with the model, from its author.")

    @property
    def source(self) -> dict[str, Any]:
        """What every ``from_pretrained`` is told."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


def load_config(name: str, args: ModelArguments) -> Any:
    """The model's configuration."""
    folder = Path(name)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise InputError(
            f"The model folder {name!r} holds a PEFT adapter without its base model. Score it from Python, with "
            "pacgen(AutoPeftModel...from_pretrained(folder, is_trainable=True), data), or merge it and save the whole."
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        inside = sorted(path.name for path in folder.iterdir())
        listing = ", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "") if inside else "nothing"
        raise InputError(
            f"The model folder {name!r} has no config.json: expected a model written by save_pretrained(). "
            f"It holds {listing}."
        )
    if folder.is_file() or (not folder.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1)):
        what = "is a file" if folder.is_file() else "does not exist"
        raise InputError(
            f"The model folder {name!r} {what}. Expected a folder written by save_pretrained(), "
            f"or the id of a model on the Hugging Face hub."
        )
    with quiet():
        try:
            return transformers.AutoConfig.from_pretrained(name, **args.source)
        except Exception as error:
            raise _not_loaded(name, error, folder.is_dir()) from error


def _not_loaded(name: str, error: Exception, local: bool) -> InputError:
    if "trust_remote_code" in str(error):
        return InputError(
            f"The model {name!r} comes with its own code, which is not run unless asked for. "
            "Read that code, then add --trust-remote-code."
        )
    if local:
        return InputError(f"The model in the folder {name!r} cannot be loaded: {describe(error)}. Save it again.")
    return InputError(
        f"The model {name!r} is no folder here, and could not be loaded from the Hugging Face hub: "
        f"{describe(error)}. Check the name and the connection."
    )


def load_model(
    name: str,
    args: ModelArguments,
    config: Any,
    task: Task,
    *,
    device: torch.device,
    num_labels: int | None = None,
    seed: int = 0,
) -> tuple[Any, tuple[str, ...]]:
    """The model for a task, and the names of the parameters that its checkpoint lacks, which come from ``seed``.

    With ``num_labels`` it gets a head of so many outputs, in place of one for other labels.
    """
    if num_labels is not None:
        config.num_labels = num_labels
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model, report = getattr(transformers, task.facts.auto_class).from_pretrained(
                name,
                config=config,
                dtype=args.dtype.value,
                ignore_mismatched_sizes=True,  # reported below, in words
                output_loading_info=True,
                **args.source,
            )
        except Exception as error:
            raise _not_loaded(name, error, Path(name).is_dir()) from error
    mismatched = sorted(report["mismatched_keys"])
    new = {*report["missing_keys"]}
    if num_labels is not None:  # a head for other labels is replaced
        new |= {name for name, *_ in mismatched}
    elif mismatched:
        key = mismatched[0]
        raise InputError(
            f"The weights of {name!r} do not fit its config.json: {key[0]!r} has shape {tuple(key[1])} in the "
            f"checkpoint and {tuple(key[2])} by the configuration. Repair config.json, or save the model again."
        )
    model = model.to(device)
    if task.facts.causal and _looks_ahead(model):
        raise InputError(
            f"The model {name!r} is a bidirectional encoder: it sees the token that it would have to predict, so it "
            "has no meaningful loss as a causal-lm. Score it with its own head from Python, "
            "pacgen(AutoModelForMaskedLM.from_pretrained(...), data); or, if it was trained as a decoder, put "
            '"is_decoder": true into its config.json.'
        )
    return model, tuple(sorted(new))


def _looks_ahead(model: Any) -> bool:
    """Whether a language model's predictions depend on later tokens: its configuration does not tell for every kind."""
    token = model.config.get_text_config().vocab_size // 2
    one = torch.full((1, 4), token, device=model.device)
    other = one.clone()
    other[0, -1] = token - 1
    with torch.no_grad(), quiet():
        first, second = (model(input_ids=tokens).logits[0, :-1].float() for tokens in (one, other))
    # float32 is the same to rounding; anything that looks ahead differs by far more
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 1e-2
    return bool((first - second).abs().max() > tolerance * first.abs().max())


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"--device {name!r} cannot be used: {describe(error)}. Give 'cpu', 'cuda', 'cuda:1', ... or leave it out."
        ) from error
    return device
