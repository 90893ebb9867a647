"""A model by name, with the head for its task."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from hf_pacgen.command_line.inputs.adapters import Adapter, Bases, find_adapter, holds, put_on
from hf_pacgen.command_line.inputs.runs import step_of
from hf_pacgen.command_line.inputs.tasks import Task
from hf_pacgen.command_line.quiet import quiet
from hf_pacgen.config.settings import Config, option
from hf_pacgen.errors import InputError, few, refusing

Mismatched = list[tuple[Any, ...]]  # names of parameters, their shapes in the checkpoint and by the configuration


PROCESSORS = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model"),
    *("preprocessor_config.json", "processor_config.json"),
)
"""Files of tokenizers, image processors and feature extractors."""

WEIGHTS, INDEX = (".safetensors", ".bin", ".pt", ".h5"), ".index.json"
"""Endings of files with weights, and of the list of several such files."""


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
    checkpoint: str | None = option(
        None,
        "Which checkpoint of a training run's folder: 'last', 'best' (by its trainer_state.json) or a step. By default "
        "the folder's own model, or the last checkpoint.",
    )
    base_model: str | None = option(
        None, "Base of a PEFT adapter, where it is no longer what the adapter's adapter_config.json names."
    )
    load_in_4bit: bool = option(False, "Load the frozen base of an adapter in 4 bits, with bitsandbytes.")
    # of one command: several adapters of one base load it once
    bases: Bases = dataclasses.field(default_factory=Bases, init=False, repr=False, compare=False)

    @property
    def source(self) -> dict[str, Any]:
        """What every ``from_pretrained`` is told."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def adapter(self, name: str) -> Adapter | None:
        """The adapter of that name; None where it is a whole model."""
        return find_adapter(name, revision=self.revision, base=self.base_model)


def is_path(name: str) -> bool:
    """Whether a name is meant as a path: an id on the hub has one slash at most."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def without_weights(name: str, args: ModelArguments) -> bool:
    """Whether a name is a folder with a configuration and no weights at all."""
    folder = Path(name)
    if not (folder / "config.json").is_file() or args.adapter(name) is not None:
        return False
    return not any(path.suffix in WEIGHTS or path.name.endswith(INDEX) for path in folder.iterdir())


def load_config(name: str, args: ModelArguments) -> Any:
    """The model's configuration."""
    folder, adapter = Path(name), args.adapter(name)
    if adapter is not None:
        with quiet(), _loading(adapter.base):
            config = transformers.AutoConfig.from_pretrained(adapter.base, **args.source | adapter.base_source)
        adapter.head_of(config)
        return config
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(
            f"The model folder {name!r} has no config.json: expected a model written by save_pretrained(), a PEFT "
            "adapter, or a training run with checkpoint-N in it. "
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
    adapter = args.adapter(name)
    bare = torch.device(device).type == "meta"
    if bare and (adapter is not None or args.load_in_4bit):
        raise InputError(
            f"{name!r} is an adapter, or is to be loaded in 4 bits, which needs weights: expected a whole model for a "
            "plan without them. Leave --device out, or plan in Python: plan(get_peft_model(model, config), data) of a "
            "model made under torch.device('meta')."
        )
    if args.load_in_4bit:
        _check_4bit(name, adapter)
    if num_labels is not None:  # the configuration makes the head
        config.num_labels = num_labels
    # new parameters come from the seed, and the caller's random numbers go on as if nothing had been drawn
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if adapter is None:
            model, new, mismatched = _load_whole(name, args, config, task, args.source, device)
        else:
            model, new, mismatched = _load_adapted(adapter, args, config, task, device)
    # a checkpoint without a parameter, or with one of another shape, loads in silence
    if mismatched and num_labels is None:  # else it is the head for other labels
        key, saved, expected = mismatched[0]
        raise InputError(
            f"The weights of {name!r} do not fit its config.json: {key!r} has shape {tuple(saved)} in the "
            f"checkpoint and {tuple(expected)} by the configuration. Repair config.json, or save the model again."
        )
    new = {*new, *(key for key, *_ in mismatched)}
    if new and not args.random_head:
        raise InputError(
            f"The checkpoint of {name!r} lacks {few(sorted(new))}, which {task.value} needs: made at random, they "
            "would be scored as if they were trained. Fine-tune the model, save all of it, and give that folder; or "
            "add --random-head to score it as it is (in Python, load it yourself)."
        )
    # a number without a meaning would look like any other
    if task.facts.causal and not bare and _looks_ahead(model):
        raise InputError(
            f"The model {name!r} is a bidirectional encoder: it sees the token that it would have to predict, so it "
            "has no meaningful loss as a causal-lm. Score it with its own head from Python, "
            "pacgen(AutoModelForMaskedLM.from_pretrained(...), data); or, if it was trained as a decoder, put "
            '"is_decoder": true into its config.json.'
        )
    return model, tuple(sorted(new))


def _load_whole(
    name: str,
    args: ModelArguments,
    config: Any,
    task: Task,
    source: dict[str, Any],
    device: Any,
    trained: Sequence[str] = (),
) -> tuple[Any, set[str], Mismatched]:
    """The model on its device, the parameters its checkpoint lacks, and those of another shape."""
    auto = getattr(transformers, task.facts.auto_class)
    if torch.device(device).type == "meta":  # of the configuration alone
        dtype = getattr(config, "dtype", None) or torch.float32 if args.dtype == "auto" else getattr(torch, args.dtype)
        with quiet(), _loading(name), torch.device("meta"):
            return auto.from_config(config, dtype=dtype, trust_remote_code=args.trust_remote_code), set(), []
    quantized: dict[str, Any] = {}
    if args.load_in_4bit:
        settings: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
        if trained:  # whole modules beside the adapter's own weights; transformers' own choice has the head of words
            settings["llm_int8_skip_modules"] = [*trained, "lm_head"]
        quantized["quantization_config"] = transformers.BitsAndBytesConfig(load_in_4bit=True, **settings)
    is_quantized = bool(quantized) or getattr(config, "quantization_config", None) is not None
    if is_quantized:  # such weights are made on their device, and some cannot be moved
        quantized["device_map"] = {"": device}
    with quiet(), _loading(name):
        model, report = auto.from_pretrained(
            name,
            config=config,
            dtype=args.dtype,
            ignore_mismatched_sizes=True,  # reported by the caller, in words
            output_loading_info=True,
            **quantized,
            **source,
        )
    model = model if is_quantized else model.to(device)
    return model, set(report["missing_keys"]), sorted(report["mismatched_keys"])


def _load_adapted(
    adapter: Adapter, args: ModelArguments, config: Any, task: Task, device: Any
) -> tuple[Any, set[str], Mismatched]:
    """The same for a base with an adapter on it; a head that was trained with the adapter is in neither list."""
    source, trained = args.source | adapter.base_source, tuple(adapter.settings.get("modules_to_save") or ())
    key: tuple[Any, ...] = (
        adapter.base,
        adapter.settings.get("revision"),
        task,
        config.num_labels,
        args.dtype,
        str(device),
    )
    base, new, mismatched = args.bases.get(
        (*key, (args.load_in_4bit, trained)),
        lambda: _load_whole(adapter.base, args, config, task, source, device, trained),
    )
    model, saved = put_on(adapter, base), adapter.weights()
    return (
        model,  # PEFT has put the adapter where its base is
        {name for name in new if not holds(saved, name)},
        [entry for entry in mismatched if not holds(saved, entry[0])],
    )


def _check_4bit(name: str, adapter: Adapter | None) -> None:
    if adapter is None:
        raise InputError(
            f"--load-in-4bit is for the frozen base of a PEFT adapter, and {name!r} is a whole model: weights of 4 "
            "bits are not trainable, so there is nothing to measure. Leave it out, or give an adapter."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("--load-in-4bit needs bitsandbytes, which is not installed: pip install bitsandbytes.")


def processor_of(name: str, args: ModelArguments) -> tuple[str, dict[str, Any]]:
    """Where a model's tokenizer or image processor is, and what ``from_pretrained`` is told of its version.

    A checkpoint that has none was saved by a Trainer that did not know it: the run's folder, or the adapter's base, may
    have it.
    """
    folder, adapter = Path(name), args.adapter(name)
    if not folder.is_dir() and adapter is None:
        return name, args.source
    for place in (folder, *([folder.parent] if step_of(folder) >= 0 else [])):
        if any((place / file).is_file() for file in PROCESSORS):
            return str(place), args.source
    return (name, args.source) if adapter is None else (adapter.base, args.source | adapter.base_source)


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
