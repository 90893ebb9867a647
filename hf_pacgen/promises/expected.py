"""What each way of training and promising would promise, before anything is trained."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hf_pacgen.maths.held_out_bounds import exact_error_bound
from hf_pacgen.maths.progressive import MOST_PLAYED, chernoff_bound, game_bound, progressive_tilt

__all__ = [
    "BLOCKS",
    "FIRST_FRACTION",
    "GUESS",
    "ExpectedPromise",
    "default_train_fraction",
    "expected_promises",
    "first_guess",
    "progressive_bound",
    "share_out",
]

SMALL, LARGE = 3_000, 10_000
"""Up to so many examples a half trains best, and from so many on four fifths (measured with 60 paired seeds)."""
BLOCKS, FIRST_FRACTION = 4, 0.25
"""Blocks of a progressive training, and the share of the data it begins with."""
GUESS = 0.15
"""The error that is expected where nobody says another."""
FIRST_WEIGHT = 40
"""For how many examples it counts beside those of a first test: noise costs more than a guess that is a bit off."""


@dataclass(frozen=True, kw_only=True)
class ExpectedPromise:
    """What one way would promise if its models err as often as is expected.

    Attributes:
        how: ``"split"``, ``"progressive"`` or ``"all"``.
        trained_on: examples that the promised model is trained on; for progressive the average over the models.
        tested_on: examples that it is tested on.
        error_bound: the bound at the expected error.
        says: in words, what is promised about.
    """

    how: str
    trained_on: int
    tested_on: int
    error_bound: float
    says: str


def default_train_fraction(num_examples: int) -> float:
    """The share of n examples that trains: a half up to 3,000 examples, four fifths from 10,000 on, a line between.

    >>> default_train_fraction(500), default_train_fraction(50_000)
    (0.5, 0.8)
    """
    between = (num_examples - SMALL) / (LARGE - SMALL)
    return 0.5 + 0.3 * min(1.0, max(0.0, between))


def share_out(num_examples: int, blocks: int = BLOCKS, first_fraction: float = FIRST_FRACTION) -> tuple[int, int]:
    """How many of n examples a progressive training begins with, and the size of its blocks, which are equal.

    Raises:
        ValueError: fewer than one block, a fraction outside (0, 1), or too few examples for that.

    >>> share_out(201)
    (53, 37)
    """
    if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1:
        raise ValueError(f"blocks must be a whole number of at least 1; got {blocks!r}.")
    if not 0 < first_fraction < 1:
        raise ValueError(
            f"first_fraction must be in (0, 1), the share that training begins with; got {first_fraction}."
        )
    size = int((1 - first_fraction) * num_examples / blocks)
    first = num_examples - blocks * size
    if not size or first < 2:
        raise ValueError(
            f"{num_examples} examples are too few for {blocks} blocks after a first part of {first_fraction:g}: each "
            "block needs at least one and the first part two. Take fewer blocks, or how='split'."
        )
    return first, size


def first_guess(errors: int, examples: int) -> float:
    """The error to expect of a progressive training, from a first test on a few examples.

    >>> first_guess(5, 25)
    0.16923076923076924
    """
    return (errors + GUESS * FIRST_WEIGHT) / (examples + FIRST_WEIGHT)


def progressive_bound(errors: Sequence[int], block_size: int, delta: float, guess: float) -> tuple[float, str]:
    """The bound from the errors on every block, and its name: by the game where it can be solved, else by Chernoff.

    Which of them counts depends on the numbers of examples alone.  ``guess`` is in (0, 1), from before the blocks.
    """
    blocks = len(errors)
    if blocks * block_size <= MOST_PLAYED:
        return game_bound(sum(errors), blocks, block_size, delta, guess), "worst case of all ways to learn"
    # one tilt: by tilts that follow the errors of the blocks, whose models may have any rates, the bound was 0.3 to 0.5
    # points larger at 3,000 to 12,000 examples, and by several points where the guess is bad
    tilts = [progressive_tilt(guess, blocks * block_size, delta)] * blocks
    return chernoff_bound(errors, [block_size] * blocks, delta, tilts), "exponential supermartingale"


def expected_promises(
    num_examples: int,
    *,
    delta: float = 0.05,
    expected_error: float = GUESS,
    train_fraction: float | None = None,
    blocks: int = BLOCKS,
    first_fraction: float = FIRST_FRACTION,
    num_unlabeled: int = 0,
    expected_disagreement: float = 0.02,
) -> list[ExpectedPromise]:
    """What each way would promise from n labeled examples, if every model errs as often as is expected.

    The models differ in how many examples they learn from, so the one that is tested least may err least; that is for
    the reader to weigh.  Nothing is trained.

    Args:
        num_examples: n.
        delta: the probability that a promise fails.
        expected_error: of all models, in [0, 1].
        train_fraction: the share that trains where one model is tested; by default :func:`default_train_fraction`.
        blocks, first_fraction: of the progressive way.
        num_unlabeled: further inputs without labels; without any there is no promise for the model of all examples.
        expected_disagreement: share of those on which the models of a part and of all examples will differ.

    Raises:
        ValueError: an argument out of range.

    >>> [f"{row.how}: {row.error_bound:.3f}" for row in expected_promises(200)]
    ['split: 0.222', 'progressive: 0.215']
    """
    for name, value in (("expected_error", expected_error), ("expected_disagreement", expected_disagreement)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1]; got {value}.")
    fraction = default_train_fraction(num_examples) if train_fraction is None else train_fraction
    part = round(fraction * num_examples)
    if not 0 < part < num_examples:
        raise ValueError(f"A share of {fraction:g} of {num_examples} examples leaves nothing to train or to test.")
    tested = num_examples - part
    rows = [
        ExpectedPromise(
            how="split",
            trained_on=part,
            tested_on=tested,
            error_bound=exact_error_bound(round(expected_error * tested), tested, delta),
            says="the model of the first part",
        )
    ]
    first, size = share_out(num_examples, blocks, first_fraction)
    # whole numbers of errors, as evenly spread as can be
    so_far = [round(expected_error * size * block) for block in range(blocks + 1)]
    errors = [after - before for before, after in itertools.pairwise(so_far)]
    guess = min(max(expected_error, 0.5 / num_examples), 1 - 0.5 / num_examples)
    rows.append(
        ExpectedPromise(
            how="progressive",
            trained_on=round(first + size * (blocks - 1) / 2),
            tested_on=size * blocks,
            error_bound=progressive_bound(errors, size, delta, guess)[0],
            says=f"one of {blocks} models, drawn at random",
        )
    )
    if num_unlabeled:
        differ = exact_error_bound(round(expected_disagreement * num_unlabeled), num_unlabeled, delta / 2)
        error = exact_error_bound(round(expected_error * tested), tested, delta / 2)
        rows.append(
            ExpectedPromise(
                how="all",
                trained_on=num_examples,
                tested_on=tested,
                error_bound=min(1.0, error + differ),
                says="the model of all examples, by its disagreement with the first part's",
            )
        )
    return rows
