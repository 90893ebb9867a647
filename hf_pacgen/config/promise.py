"""Settings of a promise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from hf_pacgen.config.settings import SUBSET, Config, Count, Seed, number, option
from hf_pacgen.maths.bounded_losses import PromisedLoss


def _chance(value: Any, name: str) -> float:
    # a share in percent is a common slip, and 0 and 1 promise nothing
    if not number(value, name, minimum=0, strict=True) < 1:
        raise ValueError(f"{name} must be in (0, 1), a probability such as 0.05; got {value!r}.")
    return float(value)


Chance = Annotated[float, _chance]


@dataclass(frozen=True, kw_only=True)
class PromiseConfig(Config):
    """Settings of :func:`hf_pacgen.promise`, which takes them by their names.

    >>> PromiseConfig(delta=0.1).to_dict()["candidates"]
    1
    """

    delta: Chance = option(0.05, "δ: the promise fails with at most this probability.")
    loss: PromisedLoss | None = option(
        None,
        "What is promised, in [0, 1]: 'zero_one' (default for classes), 'exact_match' (all labels of an example; "
        "default for several labels and for answers), 'token_error' (default for tags and masked tokens), 'brier' or "
        "'f1'.",
    )
    candidates: Count = option(
        1, "How many models, thresholds or prompts were compared on the held-out data, this one among them: costs δ/k."
    )
    max_error: Chance | None = option(
        None, "Find the confidence from which on at most this share of the answers is wrong, and abstain below it."
    )
    coverage: Chance | None = option(
        None, "Find the sets of classes that hold the label with at least this probability."
    )
    max_examples: Count | None = option(None, SUBSET)
    assume_independent: bool = option(
        False,
        "Promise although many held-out examples repeat, a few equal training examples, or rows hold several "
        "documents: you vouch that all were drawn independently of each other.",
    )
    seed: Seed = option(0, "Seed of the subset, and of what the data draws at random.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_error is not None and self.coverage is not None:
            raise ValueError(
                "max_error and coverage are two promises, and each costs a part of δ: give one of them in a call, and "
                "half of δ to each where you want both."
            )
