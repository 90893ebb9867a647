"""The noise's state in a checkpoint: the running curvature, and the settings it was found with."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_pacgen.errors import refusing
from hf_pacgen.files import write_atomically
from hf_pacgen.noise.curvature_tracker import CurvatureTracker, RunningMean
from hf_pacgen.noise.directions import PREFIX, Ascent
from hf_pacgen.noise.perturbation import DIVIDED_INTO
from hf_pacgen.training.follow import FollowedLosses

__all__ = ["NOISE_FILE", "load", "save"]

NOISE_FILE = "pacgen_noise.safetensors"
FOLLOWS = "follows"  # in the file, what the size of the noise follows
SETTINGS = "settings"  # in the file; those of releases up to 0.2 do not have them
REMEDY = (
    "The file is cut short or damaged: resume from another checkpoint, or remove the file to start the running "
    "curvature of the noise anew."
)
DAMAGED = (SafetensorError, AttributeError, KeyError, TypeError, ValueError)
ANEW = "the running curvature of the noise starts anew"

logger = logging.getLogger(__name__)


def save(
    tracker: CurvatureTracker,
    folder: str | os.PathLike[str],
    *,
    writes: bool,
    ascent: Ascent | None = None,
    follows: FollowedLosses | None = None,
) -> None:
    """Write the state into a checkpoint, if this process ``writes``; all processes must call.

    ``ascent`` is one along the gradient of the last step, and ``follows`` the losses that the size of the noise
    follows, which a resumed run needs.
    """
    followed = {} if follows is None else {FOLLOWS: follows.state()}  # a collective
    if not writes and not tracker.noise.divided:
        return
    tensors, values = tracker.state()
    if ascent is not None:
        direction, held = ascent.state()
        tensors, values = tensors | {PREFIX + name: t for name, t in direction.items()}, values | held
    whole = tracker.noise.gathered(tensors)  # a collective under FSDP2
    if writes:
        values |= followed | {DIVIDED_INTO: tracker.noise.parts, SETTINGS: tracker.config.to_dict()}
        content = safetensors.torch.save(whole, {"state": json.dumps(values)})
        write_atomically(Path(folder) / NOISE_FILE, lambda file: file.write(content))


def load(
    tracker: CurvatureTracker,
    folder: str | os.PathLike[str],
    *,
    ascent: Ascent | None = None,
    follows: FollowedLosses | None = None,
) -> None:
    """Read the state of a checkpoint.

    Settings that are not those of the file are used as they are now.  The running curvature is another's, and starts
    anew with a warning, if its source, or the turns in which weights are sampled, are others.

    Raises:
        ValueError: the file is damaged, or of other parameters.
    """
    path = Path(folder) / NOISE_FILE
    if not path.is_file():
        if follows is not None:
            logger.warning("%s has no %s: the size of the noise follows the run from here on.", folder, NOISE_FILE)
        if ascent is not None:
            logger.warning("%s has no %s: the first step has no direction.", folder, NOISE_FILE)
        if tracker.sums:
            logger.warning("%s has no %s: %s.", folder, NOISE_FILE, ANEW)
        return
    with refusing(f"{path} cannot be read", REMEDY, kind=DAMAGED):
        tensors, values = _read(path)
    settings: Mapping[str, Any] = values.get(SETTINGS, {})
    _say_what_changed(tracker, settings, folder)
    if tracker.config.rho == "estimate" and settings.get("rho", "estimate") == "estimate":
        tracker.take_rho(float(values["rho"]))
    if follows is not None:
        follows.load_state(values.get(FOLLOWS), folder)
    direction = {name: tensors.pop(PREFIX + name) for name in tracker.noise.parameters if PREFIX + name in tensors}
    if ascent is not None:
        ascent.load_state(direction, values)
    if not tracker.sums:
        return  # this noise needs no running curvature of its own
    if reason := _of_another(tracker, settings, tensors, values):
        logger.warning(f"The noise state in {folder} {reason}: {ANEW}. Resume as it was saved to go on with it.")
        return
    tracker.load_state(tensors, values)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        state = (file.metadata() or {}).get("state")
    if state is None:
        raise ValueError("it has no entry 'state'")
    values = json.loads(state)
    means = {int(key): RunningMean(**mean) for key, mean in values["means"].items()}
    if not all(map(math.isfinite, (float(values["rho"]), *(m.total for m in means.values())))):
        raise ValueError("it has numbers that are not finite")
    return tensors, values | {"means": means}


def _say_what_changed(tracker: CurvatureTracker, before: Mapping[str, Any], folder: Any) -> None:
    now = tracker.config.to_dict()
    changed = [f"{name} {before[name]!r} -> {now[name]!r}" for name in now if before.get(name, now[name]) != now[name]]
    if changed:
        logger.info("The noise goes on from %s with other settings: %s.", folder, ", ".join(changed))


def _of_another(
    tracker: CurvatureTracker, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> str | None:
    """Why a running curvature is not the one that goes on; None where it is."""
    config = tracker.config
    if not tensors:
        return "has no running curvature, which its settings did not need"
    if (source := settings.get("curvature", config.curvature.value)) != config.curvature.value:
        return f"is of curvature={source!r}, and now it is {config.curvature.value!r}"
    every = settings.get("curvature_every", config.curvature_every)
    if tracker.takes_samples and every != config.curvature_every:
        return f"is of curvature_every={every}, and now it is {config.curvature_every}, so weights take other turns"
    if (before := values.get(DIVIDED_INTO, 1)) != (now := tracker.noise.parts):
        # blocks of other sizes take turns at other steps, so their means do not carry over
        return f"is of a model in {before} shard(s), and this one is in {now}"
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        return "has values that are not finite"
    if not settings and not tracker.fits(tensors, values["means"]):
        return "has weights that were sampled in other turns, as with another curvature or curvature_every"
    return None
