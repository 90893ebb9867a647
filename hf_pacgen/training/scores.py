"""Scores by the weights they are of: those of a checkpoint, of more training or of another trial are told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hf_pacgen.model.fingerprint import weights_fingerprint
from hf_pacgen.results.pacgen import PACGenResult

__all__ = ["Scores", "corrected_log"]


class Scores:
    """All scores of a training, each found again while the model has the weights it was computed on.

    After ``load_best_model_at_end`` that is the score of the best checkpoint; after a step it is none.
    """

    def __init__(self) -> None:
        self._found: dict[str, PACGenResult] = {}

    def add(self, model: nn.Module, result: PACGenResult) -> None:
        """Remember the score of the weights that a model has now."""
        if (name := weights_fingerprint(model, here=True)) is not None:
            self._found[name] = result

    def of(self, model: nn.Module | None) -> PACGenResult | None:
        """The score of the weights that a model has now; None where they were not scored.

        It reads all weights on this process once, and asks no other: the main process alone writes a card.
        """
        if model is None or not self._found:
            return None
        name = weights_fingerprint(model, here=True)
        return None if name is None else self._found.get(name)


def corrected_log(log: Sequence[Mapping[str, Any]], score: PACGenResult | None) -> list[Any]:
    """The log of a training whose last evaluation has the metrics of a score, or none where there is no score.

    A card takes its results from there, whichever weights the model has by then.  Nothing else changes.
    """
    last = next((entry for entry in reversed(log) if "eval_loss" in entry), None)
    if last is None:
        return list(log)
    keys = {facts.key for facts in PACGenResult.facts().values() if facts.key}
    metrics = {} if score is None else score.metrics()
    entry = {}
    for name, value in last.items():
        # of several data sets each has its name before the metric's; the longest one is meant
        ours = max((key for key in keys if name.endswith(f"_{key}")), key=len, default=None)
        if ours is None:
            entry[name] = value
        elif ours in metrics:
            entry[name] = metrics[ours]
    # behind the end of the training, so that the table of its evaluations stays as it was
    return [*log, entry]
