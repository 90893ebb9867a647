"""Whether a model was chosen by its error on the held-out data, as its run's ``trainer_state.json`` tells."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_pacgen.errors import InputError
from hf_pacgen.model.run_state import STATE, read_state, run_of, state_files
from hf_pacgen.model.state import base_model, unwrap

__all__ = ["STATE", "Evaluations", "check_selection", "evaluations_of", "run_folder"]

SAME_LOSS, SAME_SHARE = 1e-4, 1e-9
"""How near, relatively, the logged loss of the same model on the same data is; and how near a logged accuracy is."""


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of a training run.

    Attributes:
        file: where they stand.
        best: the metric by which a checkpoint was chosen; None where none was chosen.
        metric: what it is called, where that is known.
        logged: the metrics of every evaluation, by name without the prefix; those of several data sets end in the name.
        number: at how many steps there were evaluations, so how many models were compared.
    """

    file: str
    best: float | None
    metric: str
    logged: list[dict[str, float]] = field(default_factory=list)
    number: int = 0


def run_folder(model: Any) -> Path | None:
    """The folder that a model was loaded from, if it is one; of an adapter, too, where PEFT has kept it."""
    whole = unwrap(model)
    names = [getattr(getattr(one, "config", None), "_name_or_path", None) for one in (whole, base_model(whole))]
    return next((Path(name) for name in names if isinstance(name, str) and name and Path(name).is_dir()), None)


def evaluations_of(where: str | os.PathLike[str] | None) -> Evaluations | None:
    """The evaluations that a run's files know of, by the one that knows most; None where there are none.

    Args:
        where: a ``trainer_state.json``, or the folder of a model, a checkpoint or a run.

    Raises:
        InputError: a named file that is no state of a Trainer.
    """
    if where is None:
        return None
    if not isinstance(where, (str, os.PathLike)):
        raise TypeError(f"trainer_state must be a folder or a file; got {type(where).__name__}.")
    place = Path(where)
    # those of a checkpoint's run know more than its own
    folders = dict.fromkeys((run_of(place), place)) if place.is_dir() else ()
    files = [file for folder in folders for file in state_files(folder)] if folders else [place]
    found = [state for file in files if (state := _read(file, named=not place.is_dir())) is not None]
    return max(found, key=lambda state: (state.number, state.best is not None), default=None)


def check_selection(
    known: Evaluations | None, *, candidates: int, mean_loss: float | None, accuracy: float | None
) -> str | None:
    """A sentence on how the model was chosen, where that is known.

    The data of a run's evaluations are recognized by what the run has logged: the model's own mean loss.  A Trainer
    keeps no other trace of them.

    Args:
        candidates: how many are paid for.
        mean_loss, accuracy: of the model on the held-out data, where it has them.

    Raises:
        InputError: it was chosen by these data, and more candidates were compared than are paid for.
    """
    if known is None or not known.logged:
        return None
    number, by = known.number, f" by {known.metric}" if known.metric else ""
    here = "unknown" if mean_loss is None else f"{mean_loss:.5g}"
    if known.best is None:
        if _same(known, mean_loss):
            return (
                f"{known.file} has an evaluation with the loss that the model has on these data ({here}): the promise "
                f"holds only if none of the {number} evaluations has decided anything, such as when to stop. Else pass "
                f"candidates={number}."
            )
        return None
    if _same(known, mean_loss):
        if candidates >= number:
            return f"The model was chosen{by} among {number} evaluations on these data, which {candidates} pay for."
        raise InputError(
            f"The model was chosen on the held-out data: by {known.file} it is the best{by} of {number} evaluations, "
            f"one with the loss that it has on these data ({here}). The best of {number} errs more often than it did "
            f"there. Give data that chose nothing, or pay for the choice with candidates={number}."
        )
    if accuracy is not None and any(abs(value - accuracy) < SAME_SHARE for value in _named(known, "accuracy")):
        return (
            f"The model was chosen{by} among {number} evaluations ({known.file}), one with the accuracy that it has on "
            f"these data: if these are the same data, the promise holds only with candidates={number}."
        )
    if mean_loss is None or not _named(known, "loss"):
        return (
            f"The model was chosen{by} among {number} evaluations ({known.file}), and their data cannot be compared "
            f"with these: if they are the same, the promise holds only with candidates={number}."
        )
    return None


def _same(known: Evaluations, mean_loss: float | None) -> bool:
    if mean_loss is None or not math.isfinite(mean_loss):
        return False
    return any(math.isclose(loss, mean_loss, rel_tol=SAME_LOSS, abs_tol=1e-9) for loss in _named(known, "loss"))


def _named(known: Evaluations, name: str) -> list[float]:
    # of several data sets the metrics are called eval_first_loss, eval_second_loss
    return [v for one in known.logged for key, v in one.items() if key == name or key.endswith(f"_{name}")]


def _read(file: Path, *, named: bool) -> Evaluations | None:
    try:
        state = read_state(file)
        history = state["log_history"]
        logged = [_metrics(entry) for entry in history]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if named:
            raise InputError(
                f"{str(file)!r} cannot be read as the state of a training run ({type(error).__name__}: {error}): "
                f"expected the {STATE} that a Trainer writes beside its checkpoints."
            ) from None
        return None
    best = state.get("best_metric")
    number = float(best) if isinstance(best, (int, float)) and not isinstance(best, bool) else None
    evaluations = [entry for entry in logged if entry]
    steps = {entry.get("step", i) for i, entry in enumerate(history) if logged[i]}
    return Evaluations(str(file), number, _metric_name(number, evaluations), evaluations, len(steps))


def _metrics(entry: Mapping[str, Any]) -> dict[str, float]:
    numbers = {k: float(v) for k, v in entry.items() if k.startswith("eval_") and isinstance(v, (int, float))}
    return {name.removeprefix("eval_"): value for name, value in numbers.items()}


def _metric_name(best: float | None, logged: list[dict[str, float]]) -> str:
    """The metric that has the best value; the state names its value alone."""
    names = [name for entry in logged for name, value in entry.items() if value == best]
    return f"eval_{names[0]}" if names else ""
