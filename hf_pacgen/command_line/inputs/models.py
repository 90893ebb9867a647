"""A model by name, with the head for its task."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from hf_pacgen.command_line.inputs.tasks import Task
from hf_pacgen.command_line.quiet import quiet
from hf_pacgen.config.settings import Config, option
from hf_pacgen.errors import InputError, few, refusing


@dataclass(frozen=True, kw_only=True)
class ModelArguments(Config):
    """How the model is loaded."""

    _argument_group_name = "model"

    task: Task | None = option(None, "What the model is trained for. By default read from its config.json.")
    revision: str | None = option(None, "Branch, tag or commit of a model on the hub.")
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = option(
        "float32", "Data type of the weights; 'auto' is the one they were saved in. float32 is the most exact."
    )
    device: str = option("auto", "Device to compute on, such as 'cpu' or 'cuda:1'. 'auto' is a GPU if there is one.")
    random_head: bool = option(
        False, "Score a model whose head, or other weights, are not in the checkpoint: they are made at random."
    )
    trust_remote_code: bool = option(False, "Run model code that comes with the model, from its author.")

    @property
    def source(self) -> dict[str, Any]:
        """What every ``from_pretrained`` is told."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


def is_path(name: str) -> bool:
    """Whether a name is meant as a path: an id on the hub has one slash at most."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def load_config(name: str, args: ModelArguments) -> Any:
    """The model's configuration."""
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        # what PEFT saves; a merged model has both files
        if (folder / "adapter_config.json").is_file():
            raise InputError(
                f"The model folder {name!r} holds a PEFT adapter without its base model. Score it from Python, with "
                "pacgen(AutoPeftModel...from_pretrained(folder, is_trainable=True), data), or merge and save the whole."
            )
        raise InputError(
            f"The model folder {name!r} has no config.json: expected a model written by save_pretrained(). "
            f"It holds {few(sorted(path.name for path in folder.iterdir()), 8) or 'nothing'}."
        )
    if folder.is_file() or (is_path(name) and not folder.is_dir()):
        what = "is a file" if folder.is_file() else "does not exist"
        expected = "a folder written by save_pretrained(), or the id of a model on the Hugging Face hub"
        raise InputError(f"The model folder {name!r} {what}. Expected {expected}.")
    with quiet(), _loading(name):
        return transformers.AutoConfig.from_pretrained(name, **args.source)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    failed, remedy = f"The model in the folder {name!r} cannot be loaded", "Save it again."
    if not Path(name).is_dir():
        failed = f"The model {name!r} is no folder here, and could not be loaded from the Hugging Face hub"
        remedy = "Check the name and the connection."
    with refusing(failed, remedy):
        try:
            yield
        except Exception as error:
            if library := re.search(r"requires the (\S+) library", str(error)):
                raise InputError(f"{failed}: it needs {library[1]}. pip install {library[1]}") from error
            if "trust_remote_code" not in str(error):
                raise
            # transformers' own text tells to set an argument of from_pretrained
            own_code = f"The model {name!r} comes with its own code, which is not run unless asked for."
            raise InputError(f"{own_code} Read that code, then add --trust-remote-code.") from error


def load_model(
    name: str,
    args: ModelArguments,
    config: Any,
    task: Task,
    *,
    device: Any,
    num_labels: int | None = None,
    seed: int = 0,
) -> tuple[Any, tuple[str, ...]]:
    """The model for a task, and the names of the parameters that its checkpoint lacks, which come from ``seed``.

    With ``num_labels`` it gets a head of so many outputs, in place of one for other labels.
    """
    if num_labels is not None:  # the configuration makes the head
        config.num_labels = num_labels
    # new parameters come from the seed, and the caller's random numbers go on as if nothing had been drawn
    with quiet(), torch.random.fork_rng(devices=[]), _loading(name):
        torch.manual_seed(seed)
        model, report = getattr(transformers, task.facts.auto_class).from_pretrained(
            name,
            config=config,
            dtype=args.dtype,
            ignore_mismatched_sizes=True,  # reported below, in words
            output_loading_info=True,
            **args.source,
        )
    # a checkpoint without a parameter, or with one of another shape, loads in silence
    mismatched = sorted(report["mismatched_keys"])
    if mismatched and num_labels is None:  # else it is the head for other labels
        key, saved, expected = mismatched[0]
        raise InputError(
            f"The weights of {name!r} do not fit its config.json: {key!r} has shape {tuple(saved)} in the "
            f"checkpoint and {tuple(expected)} by the configuration. Repair config.json, or save the model again."
        )
    new = {*report["missing_keys"], *(key for key, *_ in mismatched)}
    if new and not args.random_head:
        raise InputError(
            f"The checkpoint of {name!r} lacks {few(sorted(new))}, which {task.value} needs: made at random, they "
            "would be scored as if they were trained. Fine-tune the model, save all of it, and give that folder; or "
            "add --random-head to score it as it is (in Python, load it yourself)."
        )
    model = model.to(device)
    # a number without a meaning would look like any other
    if task.facts.causal and _looks_ahead(model):
        raise InputError(
            f"The model {name!r} is a bidirectional encoder: it sees the token that it would have to predict, so it "
            "has no meaningful loss as a causal-lm. Score it with its own head from Python, "
            "pacgen(AutoModelForMaskedLM.from_pretrained(...), data); or, if it was trained as a decoder, put "
            '"is_decoder": true into its config.json.'
        )
    return model, tuple(sorted(new))


def _looks_ahead(model: Any) -> bool:
    # tried out, on whether a change of the last token reaches earlier ones: not every configuration tells
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
    with refusing(f"--device {name!r} cannot be used", "Give 'cpu', 'cuda', 'cuda:1', ... or leave it out."):
        device = torch.device(name)
        torch.empty(0, device=device)  # a well-formed name may be of a device that is not there
        return device
