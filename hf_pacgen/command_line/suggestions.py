"""What somebody meant who gave a flag that there is not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence

MEANT = {
    "dataset": "data train train-file train-data train-dataset training-data data-files file files dataset-name d",
    "eval-dataset": "eval eval-file eval-data test test-file test-data validation-file validation-data test-dataset",
    "dataset-config": "dataset-config-name config subset",
    "split": "dataset-split train-split",
    "max-examples": "max-samples max-train-samples num-examples num-samples limit samples n",
    "batch-size": "per-device-eval-batch-size per-device-train-batch-size per-device-batch-size eval-batch-size bs b",
    "max-length": "max-seq-length max-seq-len model-max-length",
    "text-column": "text text-column-name input-column",
    "label-column": "label labels label-column-name target",
    "output": "out output-file output-path save result json o",
    "trust-remote-code": "remote-code",
    "dtype": "torch-dtype precision fp16 bf16",
    "load-in-4bit": "4bit load-4bit quantize",
    "base-model": "base base-model-name-or-path",
    "prior": "prior-model",
    "no-progress": "disable-tqdm no-bar",
    "quiet": "silent q",
    "measures": "measure metrics",
    "model": "model-folder",
}
"""Flags of ours by the names that other programs have for them."""
THE_MODEL = ("model", "model-name-or-path", "model-name", "m", "run", "checkpoint-path")
"""Flags of other programs for what is the first word here."""
FLAG = re.compile(r"--?[A-Za-z]")


def unknown_flags(words: Sequence[str], known: Collection[str]) -> list[str]:
    """The flags among some words that a command does not have, each once."""
    found: list[str] = []
    for word in words:
        if word == "--":  # what follows are names
            break
        flag = word.partition("=")[0]
        if FLAG.match(word) and flag not in known and flag not in found:
            found.append(flag)
    return found


def meant(flag: str, known: Collection[str]) -> str:
    """The flag of a command that somebody may have meant, in words; empty where nothing is near.

    >>> meant("--train-file", ["--dataset", "--split"])
    'did you mean --dataset?'
    """
    name = flag.lstrip("-").replace("_", "-").lower()
    names = [other.removeprefix("--") for other in known]
    if name in THE_MODEL and "model" not in names:
        return "the model is given as the first word, without a flag."
    for ours, others in MEANT.items():
        if ours in names and name in others.split():
            return f"did you mean --{ours}?"
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean --{near[0]}?" if near else ""


def complaint(words: Sequence[str], known: Collection[str]) -> str | None:
    """A sentence on the flags that a command does not have; None where it has all of them."""
    hints = {flag: meant(flag, known) for flag in unknown_flags(words, known)}
    return " ".join(f"Unknown {flag}{f': {hint}' if hint else '.'}" for flag, hint in hints.items()) or None
