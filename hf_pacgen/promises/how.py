"""``train_and_promise()``: split the data, train, and promise, so that nothing is tested on what trained it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from typing_extensions import Unpack

from hf_pacgen.certify.splits import select
from hf_pacgen.config import settings as rules
from hf_pacgen.config.promise import PromiseConfig
from hf_pacgen.facts import Choice
from hf_pacgen.maths.held_out_bounds import check_delta, exact_error_bound
from hf_pacgen.measures.origin import origin_of
from hf_pacgen.measures.session import DataOptions
from hf_pacgen.model.state import unwrap
from hf_pacgen.promises.examine import prints_of
from hf_pacgen.promises.expected import (
    BLOCKS,
    FIRST_FRACTION,
    default_train_fraction,
    first_guess,
    progressive_bound,
    share_out,
)
from hf_pacgen.promises.promise import promise
from hf_pacgen.promises.trained import TrainedPromise, changed, completed, disagreements
from hf_pacgen.results.promise import Promise

__all__ = ["How", "TrainedPromise", "train_and_promise"]

Train = Callable[[nn.Module, Any], Any]


class How(Choice):
    """How data are divided into what trains and what tests."""

    SPLIT = "split", lambda task: task.split()
    PROGRESSIVE = "progressive", lambda task: task.progressive()
    ALL = "all", lambda task: task.all()


def train_and_promise(
    model: nn.Module,
    data: Any,
    train: Train,
    *,
    how: str = "split",
    delta: float = 0.05,
    train_fraction: float | None = None,
    blocks: int = BLOCKS,
    first_fraction: float = FIRST_FRACTION,
    warm_start: bool = True,
    expected_error: float | None = None,
    unlabeled: Any = None,
    assume_independent: bool = False,
    seed: int = 0,
    **options: Unpack[DataOptions],
) -> TrainedPromise:
    """Divide labeled examples at random, train on some, and promise an error from the others.

    - ``"split"``: one model, trained on a part, with the exact bound from the rest.
    - ``"progressive"``: a model of the first part is tested on the next block, then learns from it too, and so on.  The
      promise is about one of these models, drawn at random, and holds whatever a model learned from the errors before
      it (:func:`~hf_pacgen.maths.progressive.game_bound`).  All blocks but the last train, and all but the first test.
    - ``"all"``: the model of *all* examples errs at most as often as that of a part, plus how often the two disagree,
      which inputs without labels show.  Each of the two bounds has δ/2.

    The divisions are simply random.  A stratified split would not do: the exact bound needs examples that are drawn
    independently, and fixed numbers of each class are not.

    Args:
        model: as it is before the training; it is copied, and not changed.
        data: n independent examples, one a row: a ``datasets.Dataset`` or another map-style dataset.
        train: ``train(model, part)`` trains in place, in any way; if it returns a module, that one counts, and a
            ``Trainer`` that it returns is run (unless it has been) and its model counts.  It must not see other
            parts of the data, neither to stop early nor to choose among checkpoints.
        how: the way, as above.
        delta: δ, the probability that the promise fails.
        train_fraction: the share that trains (``"split"``, ``"all"``); by default a half up to 3,000 examples, and
            four fifths from 10,000 on.
        blocks, first_fraction: of ``"progressive"``.
        warm_start: whether each training of ``"progressive"`` goes on from the model before, on the new block and as
            many of the earlier examples; else it begins anew, on all examples so far.
        expected_error: a guess, near which the bound of ``"progressive"`` is tightest; a bad one loosens it, and never
            makes it false.  By default half of the first part trains a model first, and the other half tests it.
        unlabeled: further inputs, for ``"all"``, which are not those of the data; labels among their columns are not
            looked at.
        assume_independent: you vouch for a few examples that are equal by nature, as for :func:`hf_pacgen.promise`.
        seed: of the division.
        options: as for :func:`hf_pacgen.pacgen`.

    Returns:
        A :class:`TrainedPromise`; print its ``promise.statement``.

    Raises:
        ValueError, TypeError: unknown ``how``, numbers out of range, too few examples, data that cannot be divided,
            ``"all"`` without ``unlabeled``, and what :func:`hf_pacgen.promise` raises.

    Source: Langford (JMLR 2005) for the split; Cesa-Bianchi, Conconi and Gentile (IEEE IT 2004) for progressive.
    """
    task = _Task(
        model=unwrap(model),
        data=data,
        train=train,
        delta=delta,
        train_fraction=train_fraction,
        blocks=blocks,
        first_fraction=first_fraction,
        warm_start=warm_start,
        expected_error=expected_error,
        unlabeled=unlabeled,
        assume_independent=assume_independent,
        seed=seed,
        options=options,
    )
    way = How(how)
    task.check()
    return way.facts(task)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    model: nn.Module
    data: Any
    train: Train
    delta: float
    train_fraction: float | None
    blocks: int
    first_fraction: float
    warm_start: bool
    expected_error: float | None
    unlabeled: Any
    assume_independent: bool
    seed: int
    options: DataOptions

    def check(self) -> None:
        """What any way needs."""
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"model must be a torch module; got {type(self.model).__name__}.")
        if not callable(self.train):
            raise TypeError(f"train must be a function train(model, part); got {type(self.train).__name__}.")
        check_delta(self.delta)
        rules.flag(self.warm_start, "warm_start")
        rules.flag(self.assume_independent, "assume_independent")
        if isinstance(self.data, (Sequence, Mapping, DataLoader)) or not (
            hasattr(self.data, "__len__") and hasattr(self.data, "__getitem__")
        ):
            raise TypeError(
                "data must be a dataset with one example a row and a length, to be divided; got "
                f"{type(self.data).__name__}. datasets.Dataset.from_list(rows) makes one of examples."
            )
        for name, share in (("expected_error", self.expected_error), ("train_fraction", self.train_fraction)):
            if share is not None and (not isinstance(share, (int, float)) or not 0 < share < 1):
                raise ValueError(f"{name} must be in (0, 1), or None to leave it to us; got {share!r}.")
        rules.seed(self.seed, "seed")

    def order(self) -> list[int]:
        """The rows in a random order, which nothing about them decides."""
        return torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.seed)).tolist()

    def trained(self, model: nn.Module, rows: Sequence[int]) -> nn.Module:
        """``model``, trained in place on some rows."""
        returned = self.train(model, select(self.data, sorted(rows)))
        if isinstance(returned, nn.Module):
            return unwrap(returned)
        if returned is None:
            return model
        if callable(getattr(returned, "train", None)) and isinstance(getattr(returned, "model", None), nn.Module):
            if getattr(getattr(returned, "state", None), "global_step", 0) == 0:
                returned.train()
            return unwrap(returned.model)
        raise TypeError(
            "train must return nothing (it trains in place), the trained model, or a Trainer; got "
            f"{type(returned).__name__}."
        )

    def parts(self) -> tuple[list[int], list[int]]:
        """The rows that train and those that test."""
        count = len(self.data)
        fraction = default_train_fraction(count) if self.train_fraction is None else self.train_fraction
        first = round(fraction * count)
        if not 0 < first < count:
            raise ValueError(
                f"A share of {fraction:g} of {count} examples leaves nothing to train or to test: give more examples, "
                "or another train_fraction."
            )
        order = self.order()
        return order[:first], order[first:]

    def tested(self, model: nn.Module, rows: Sequence[int], seen: Sequence[int], delta: float) -> tuple[Promise, int]:
        """The promise from some rows, of a model that learned from others, and its errors on them."""
        past, part = select(self.data, sorted(seen)), select(self.data, sorted(rows))
        vouch = self.assume_independent
        found = promise(model, part, delta=delta, training_data=past, assume_independent=vouch, **self.options)
        if found.num_examples != len(rows):
            raise ValueError(
                f"{len(rows):,} rows are {found.num_examples:,} {found.unit}s: rows of one {found.unit} would fall "
                "into different parts. Give data with one row for each."
            )
        if found.num_errors is None:
            raise ValueError(
                f"The loss {found.loss!r} is not 0 or 1 for every example, and training and testing in turns counts "
                "errors. Divide the data yourself, and pass the held-out part to promise()."
            )
        return found, found.num_errors

    def origin(self, model: nn.Module, **facts: Any) -> dict[str, Any]:
        """What a promise from all of the data is made of; ``facts`` of the model that are other ones."""
        found = origin_of(model, self.data)
        return found | {"model": found["model"] | facts}

    def split(self) -> TrainedPromise:
        first, rest = self.parts()
        model = self.trained(copy.deepcopy(self.model), first)
        found, _ = self.tested(model, rest, first, self.delta)
        found = dataclasses.replace(found, origin=self.origin(model))
        return self.outcome("split", found, model, first, rest)

    def outcome(
        self, how: str, found: Promise, model: nn.Module, *parts: list[int], trained: Sequence[int] = ()
    ) -> TrainedPromise:
        first, rest = parts
        return TrainedPromise(
            promise=found,
            how=how,
            model=model,
            weights=(changed(self.model, model),),
            probabilities=(1.0,),
            tested_on=(select(self.data, sorted(rest)),),
            trained_examples=(len(first), *trained),
            num_examples=len(self.data),
        )

    def all(self) -> TrainedPromise:
        if self.unlabeled is None or (hasattr(self.unlabeled, "__len__") and not len(self.unlabeled)):
            raise ValueError(
                "how='all' needs unlabeled=, inputs without labels that are drawn like the data: on them it is counted "
                "how often the models of a part and of all examples disagree. Without any, take how='split'."
            )
        first, rest = self.parts()
        part = self.trained(copy.deepcopy(self.model), first)
        found, _ = self.tested(part, rest, first, self.delta / 2)
        whole = self.trained(copy.deepcopy(self.model), range(len(self.data)))
        # of inputs that trained the models these agree more often than of others
        known = prints_of(part, self.data, PromiseConfig(), self.options)
        vouch = self.assume_independent
        differ, inputs, vouched = disagreements(
            part, whole, self.unlabeled, self.options, known=known, assume_independent=vouch
        )
        gap = exact_error_bound(differ, inputs, self.delta / 2)
        notes = (
            f"The model of all {len(self.data):,} examples. A model of {len(first):,} of them errs on at most "
            f"{found.error_bound:.4f}, and the two disagree on at most {gap:.4f} ({differ:,} of {inputs:,} inputs).",
        )
        found = dataclasses.replace(
            found,
            error_bound=min(1.0, found.error_bound + gap),
            delta=self.delta,
            share=self.delta / 2,
            subject="the model of all examples",
            method="the exact bound of a model of a part, plus the exact bound of how often the two disagree",
            broken_by="It does not hold if the held-out examples trained or chose the first of the models, if they or "
            "the unlabeled inputs depend on each other, or if the new ones come from another distribution.",
            origin=self.origin(whole),
            notes=(*found.notes, *notes, *([vouched] if vouched else [])),
        )
        return self.outcome("all", found, whole, first, rest, trained=(len(self.data),))

    def progressive(self) -> TrainedPromise:
        if self.train_fraction is not None:
            raise ValueError(
                "how='progressive' heeds no train_fraction, since its models learn from more and more: leave it out, "
                "or give first_fraction, the share that it begins with."
            )
        first, size = share_out(len(self.data), self.blocks, self.first_fraction)
        order, generator = self.order(), torch.Generator().manual_seed(self.seed)
        model, trained = copy.deepcopy(self.model), 0
        weights, counts, parts, errors, guess = [], [], [], [], self.expected_error

        def learned(end: int) -> nn.Module:
            # the model of the first rows of the order
            nonlocal model, trained
            rows = order[:end]
            if self.warm_start:
                old = torch.randperm(trained, generator=generator)[: end - trained].tolist()
                rows = [*order[trained:end], *(order[row] for row in old)]
            counts.append(len(rows))
            model, trained = self.trained(model if self.warm_start else copy.deepcopy(self.model), rows), end
            return model

        if guess is None:
            half = first // 2
            _, wrong = self.tested(learned(half), order[half:first], order[:half], self.delta)
            guess = first_guess(wrong, first - half)
        for start in range(first, len(self.data), size):
            rows = order[start : start + size]
            found, wrong = self.tested(learned(start), rows, order[:start], self.delta)
            errors.append(wrong)
            weights.append(changed(self.model, model))
            parts.append(select(self.data, sorted(rows)))
        total = size * self.blocks
        bound, name = progressive_bound(errors, size, self.delta, guess)
        found = dataclasses.replace(
            found,
            error_bound=bound,
            num_errors=sum(errors),
            num_examples=total,
            mean_loss=sum(errors) / total,
            subject=f"one of {self.blocks} models, drawn at random,",
            method=f"progressive, {name}",
            broken_by="It does not hold if a model was trained or chosen by its own block, if the examples depend on "
            "each other, or if the new ones come from another distribution.",
            # no weights: the promise is of none of the models more than of another
            origin=self.origin(model, weights=None),
            notes=(
                *found.notes,
                f"About one of {self.blocks} models, drawn at random with equal probabilities, and neither about the "
                "last nor about the best of them.",
            ),
        )
        return TrainedPromise(
            promise=found,
            how="progressive",
            model=model,
            weights=completed(weights, self.model),
            probabilities=(1 / self.blocks,) * self.blocks,
            tested_on=tuple(parts),
            trained_examples=tuple(counts),
            num_examples=len(self.data),
        )
