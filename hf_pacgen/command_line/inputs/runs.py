"""The folder of a training run: its checkpoints in the order of their steps, and the one that is meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hf_pacgen.errors import InputError, few
from hf_pacgen.model.run_state import CHECKPOINT, STATE, read_state

MODEL_FILES = ("config.json", "adapter_config.json")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "*.index.json")


def step_of(folder: Path) -> int:
    """The step of a checkpoint by its name; -1 for any other folder.

    >>> step_of(Path("run/checkpoint-200")), step_of(Path("run"))
    (200, -1)
    """
    found = CHECKPOINT.fullmatch(folder.name)
    return int(found[1]) if found else -1


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder that hold a model with its weights, in the order of their steps."""
    found = [path for path in folder.iterdir() if step_of(path) >= 0 and path.is_dir()] if folder.is_dir() else []
    # a run that was killed while it saved leaves a folder without weights
    return sorted((path for path in found if is_model(path) and _has_weights(path)), key=step_of)


def is_model(folder: Path) -> bool:
    """Whether a folder is a saved model, or a saved adapter, itself."""
    return any((folder / name).is_file() for name in MODEL_FILES)


def _has_weights(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in WEIGHTS)


def chosen(name: str, which: str | None = None) -> str:
    """The model that is meant by a name: itself, or one of a run's checkpoints.

    Args:
        name: of a model, or the folder of a run.
        which: "last", "best" or a step.  None is the folder's own model where it has one, else "last".

    Raises:
        InputError: no such checkpoint; a best one was not recorded; ``which`` of something that is no run.
    """
    folder = Path(name)
    if which is None and (not folder.is_dir() or is_model(folder)):
        return name  # what is no folder here is judged where it is loaded
    found = checkpoints(folder)
    if not found:
        if which is None:
            return name
        what = "is no folder here" if not folder.is_dir() else "has no checkpoint-N in it that holds a model"
        raise InputError(
            f"--checkpoint {which}: {name!r} {what}. Expected the folder of a training run, the output_dir of a "
            "Trainer; leave --checkpoint out to take the model as it is named."
        )
    if which is None or which == "last":
        return str(found[-1])
    wanted = _best_step(found, name) if which == "best" else _as_step(which)
    for path in found:
        if step_of(path) == wanted:
            return str(path)
    best = "best, by trainer_state.json" if which == "best" else which
    raise InputError(
        f"The run {name!r} has no checkpoint-{wanted} with weights (--checkpoint {best}); it has "
        f"{few((path.name for path in found), 8)}. Choose one of these, or 'last'."
    )


def _as_step(which: str) -> int:
    text = which.removeprefix("checkpoint-")
    if not text.isdecimal():
        raise InputError(
            f"--checkpoint must be 'last', 'best' or the step of a checkpoint, such as 200; got {which!r}."
        )
    return int(text)


def _best_step(found: Sequence[Path], name: str) -> int:
    # the last checkpoint knows of all evaluations; its path may be of a machine or a time when the run lay elsewhere
    for file in (found[-1].parent / STATE, *(path / STATE for path in reversed(found))):
        try:
            state = read_state(file)
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise InputError(f"{str(file)!r} is no state ({error}): choose a checkpoint by its step.") from None
        best = state.get("best_model_checkpoint")
        if best:
            return step_of(Path(str(best).replace("\\", "/")))
        break
    raise InputError(
        f"The run {name!r} has no best checkpoint: its {STATE} names none, since it was trained without "
        "metric_for_best_model. Choose 'last' or a step with --checkpoint."
    )


def expanded(names: Sequence[str], which: str | None = None) -> list[str]:
    """What is compared: all checkpoints of a single run, of several runs (and models) one each."""
    if len(names) == 1 and which is None and (found := checkpoints(Path(names[0]))):
        return list(map(str, found))
    return [chosen(name, which if checkpoints(Path(name)) else None) for name in names]
