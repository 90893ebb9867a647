"""The threshold of a promise: from which confidence on to answer, or from which probability on a class counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import nn

from hf_pacgen.config.promise import PromiseConfig
from hf_pacgen.maths.held_out_bounds import exact_error_bound
from hf_pacgen.maths.selective import (
    Step,
    fewest_examples,
    first_coverage,
    fixed_sequence,
    set_threshold,
    thresholds_at,
)
from hf_pacgen.promises.examine import Floats, Seen, confidences_of
from hf_pacgen.results.promise import ABSTAIN, SETS

__all__ = ["PARTS", "rule_of", "ruled"]

PARTS = {None: 1, ABSTAIN: 3, SETS: 2}
"""In how many parts δ is shared: for the error, and with a threshold for the threshold and for what it covers."""
REFERENCE_SHARE = 0.2
"""Held-out examples, drawn at random, whose confidences give the thresholds where there is no training data."""


def rule_of(config: PromiseConfig) -> str | None:
    """Which rule is asked for."""
    if config.max_error is not None:
        return ABSTAIN
    return SETS if config.coverage is not None else None


def ruled(
    model: nn.Module,
    seen: Seen,
    training_data: Any,
    config: PromiseConfig,
    share: float,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The fields of a promise that say what its threshold is, with notes.

    Raises:
        ValueError: too few held-out examples for any threshold.
    """
    rule = rule_of(config)
    if rule is None or seen.confidences is None or seen.label_chances is None:
        return {"notes": []}
    if rule == SETS:
        return _sets(seen, config.coverage or 0.0, share)
    if rule != ABSTAIN:
        raise ValueError(f"There is no way yet to find a threshold for the rule {rule!r}: say here how.")
    judged, notes = numpy.ones(seen.size, dtype=bool), []
    if training_data is not None:
        reference = confidences_of(model, training_data, config, options)
    else:
        order = torch.randperm(seen.size, generator=torch.Generator().manual_seed(config.seed & (2**63 - 1))).numpy()
        apart = order[: max(1, round(REFERENCE_SHARE * seen.size))]
        judged[apart] = False
        reference = seen.confidences[apart]
        notes.append(
            f"The thresholds come from the confidences of {len(apart):,} of the held-out examples, drawn at random, "
            "and are judged by the others. With training_data all of them judge."
        )
    return _abstaining(seen, judged, reference, config.max_error or 0.0, share, notes)


def _abstaining(
    seen: Seen, judged: NDArray[numpy.bool_], reference: Floats, target: float, share: float, notes: list[str]
) -> dict[str, Any]:
    confidences, wrong = seen.confidences[judged], seen.losses[judged]  # type: ignore[index]
    count = len(confidences)
    start = first_coverage(count, target, share)
    if start is None:
        raise ValueError(
            f"max_error={target:g} needs at least {math.ceil(fewest_examples(target, share)):,} held-out examples to "
            f"judge a threshold by (2 log δ/log(1 - t)), and {count:,} are here. Give more, a larger max_error or a "
            "larger delta."
        )
    thresholds = thresholds_at(reference)
    passed, _ = fixed_sequence(thresholds, confidences, wrong, target=target, delta=share, start=start)
    # for the picture all of them, as if each were tested by itself
    every = [fixed_sequence([t], confidences, wrong, target=target, delta=share)[1][0] for t in thresholds]
    steps = {f"{(i + 1) / len(thresholds):g}": _entry(step) for i, step in enumerate(every)}
    found: dict[str, Any] = {"rule": ABSTAIN, "target": target, "curve": steps, "notes": notes}
    if passed is None:
        notes.append(
            f"No threshold can be promised: already among the most confident {100 * start / len(thresholds):g} % too "
            f"many are wrong for {100 * target:g} %."
        )
        return found
    # any of the thresholds may have been chosen by these examples, so each has a part of the share
    missing = exact_error_bound(count - passed.answered, count, share / (len(thresholds) - start + 1))
    return found | {
        "threshold": passed.threshold,
        "coverage": passed.answered / count,
        "coverage_bound": 1 - missing,
        "answered": passed.answered,
        "answered_errors": passed.errors,
    }


def _entry(step: Step) -> dict[str, float]:
    return {
        "threshold": step.threshold,
        "answered": float(step.answered),
        "errors": float(step.errors),
        "tail": step.tail,
    }


def _sets(seen: Seen, coverage: float, share: float) -> dict[str, Any]:
    # a set holds everything where a logit is not finite
    chances = numpy.nan_to_num(seen.label_chances, nan=1.0)  # type: ignore[arg-type]
    threshold = set_threshold(chances, coverage=coverage, delta=share)
    if threshold is None:
        raise ValueError(
            f"coverage={coverage:g} needs at least {math.ceil(math.log(share) / math.log(coverage)):,} held-out "
            f"examples (log δ/log coverage), and {seen.size:,} are here. Give more, a smaller coverage or a larger "
            "delta."
        )
    missed, every = int((chances < threshold).sum()), numpy.asarray(seen.chances)
    return {
        "rule": SETS,
        "target": coverage,
        "threshold": threshold,
        "coverage": 1 - missed / seen.size,
        "coverage_bound": coverage,
        "answered": seen.size,
        "answered_errors": missed,
        "set_size": float((~(every < threshold)).sum(1).mean()),
        "notes": [],
    }
