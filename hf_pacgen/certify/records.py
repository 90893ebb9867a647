"""What the folder of a prior says of the examples that it was trained on."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from hf_pacgen.errors import PRIOR_VOUCH
from hf_pacgen.model.run_state import read_state, run_of, state_files

__all__ = ["check_record"]

ARGUMENTS = "training_args.bin"
MOST_BYTES = 20_000_000  # of a file that is looked into
LATER = ("bound", "error_bound")  # what is measured on data that the model was not trained on has one of these


def check_record(
    folder: Path,
    model: nn.Module,
    *,
    prints: Collection[str | None] = (),
    num_examples: int | None = None,
    assume_independent: bool = False,
) -> str | None:
    """Refuse a prior that says it was trained on the examples, or that was trained and does not say on what.

    Args:
        folder: of the prior.
        model: the trained model; a checkpoint of the same training run has seen the same data.
        prints: fingerprints of the examples, as results have them under ``origin``.
        num_examples: their number, where it is known.
        assume_independent: whether the user vouches for the prior.

    Returns:
        A sentence on what was taken for granted, None where the folder has no sign of a training.

    Raises:
        ValueError: a result in the folder was made of the same data; or it is a checkpoint, and nobody vouches for it.
    """
    wanted = {value for value in prints if value}
    for place in dict.fromkeys((folder, run_of(folder))):
        for file, found in _recorded(place):
            if found in wanted:
                raise ValueError(
                    f"The prior {str(folder)!r} has seen these examples: {file.name} in {str(place)!r} was made of "
                    f"data with the same fingerprint ({found}). Give the model from before its training, or 'zero'; a "
                    "prior that was trained on other data comes from train_prior()."
                )
    said = _signs(folder, model, num_examples)
    if said is None:
        return None
    if not assume_independent:
        raise ValueError(
            f"The prior {str(folder)!r} is a checkpoint of a training ({said}), which may have seen the examples that "
            "are to be certified. Give the model from before the training, or 'zero'; if the prior was trained on "
            f"other data than these: {PRIOR_VOUCH}."
        )
    return f"The prior is a checkpoint of a training ({said}); it counts as independent of these examples, as you say."


def _signs(folder: Path, model: nn.Module, num_examples: int | None) -> str | None:
    """What tells that a folder holds a trained model, in words."""
    known = next(state_files(folder), None)
    if known is None and not (folder / ARGUMENTS).is_file():
        return None
    said = [f"it has a {known.name if known is not None else ARGUMENTS}"]
    own = str(getattr(getattr(model, "config", None), "_name_or_path", None) or "")
    if own and Path(own).is_dir() and run_of(Path(own)).resolve() == run_of(folder).resolve():
        said.append("of the run that the certified model comes from")
    seen = _examples_seen(known) if known is not None else None
    if seen is not None and num_examples is not None and seen[0] < num_examples <= seen[1]:
        said.append(f"by which it was trained on as many examples as these {num_examples:,}")
    elif known is not None:
        said.append("that does not say on what data")
    return " ".join(said)


def _examples_seen(file: Path) -> tuple[float, float] | None:
    """Between how many examples one epoch of a training had; None where its state does not tell."""
    try:
        state = read_state(file)
    except (OSError, ValueError):  # a broken state tells nothing, but it is there
        return None
    values = [state.get(key) for key in ("global_step", "epoch", "train_batch_size")]
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and value > 0]
    if len(numbers) < len(values):
        return None
    steps, epochs, size = numbers
    batches = round(steps / epochs)  # the last of an epoch may be smaller
    return (batches - 1) * size, batches * size


def _recorded(folder: Path) -> Iterator[tuple[Path, str]]:
    """The fingerprints of the data that results in a folder were made of."""
    for file in sorted(folder.glob("*.json")):
        content = _read(file)
        if not isinstance(content, dict) or any(key in content for key in LATER):
            continue
        origin = content.get("origin")
        data = origin.get("data") if isinstance(origin, dict) else None
        found = data.get("fingerprint") if isinstance(data, dict) else None
        if isinstance(found, str):
            yield file, found


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.stat().st_size <= MOST_BYTES else None
    except (OSError, ValueError):  # a file of somebody else's in the folder is no record
        return None
