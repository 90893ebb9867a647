"""Keep the examples that trained a prior apart from those it certifies."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from hf_pacgen.certify.prints import batch_fingerprints, fingerprint
from hf_pacgen.config.settings import seed as seed_rule
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.collation import MISSES, AsTheTrainer
from hf_pacgen.errors import VOUCH
from hf_pacgen.model.state import unwrap

__all__ = ["HeldOutPrior", "check_overlap", "fingerprint", "train_prior"]

OWN_PART = "certify(model, held_out.certificate_data, prior=held_out)"


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOutPrior:
    """A prior trained on a part of the data, with the two parts.

    Attributes:
        model: trained on ``prior_data``; may be trained further, on all the data, and be certified.
        weights: its weights and buffers as ``train`` left them: the center of the prior.
        prior_data, certificate_data: the two parts.
        num_prior_examples, fraction: length of ``prior_data``, and the share of the data that was asked for.
        allowed, used: how often each example's fingerprint occurs in ``certificate_data`` and in ``prior_data``.
    """

    model: nn.Module
    weights: dict[str, Tensor]
    prior_data: Any
    certificate_data: Any
    num_prior_examples: int
    fraction: float
    allowed: Counter[bytes]
    used: Counter[bytes]

    def __repr__(self) -> str:
        parts = f"{self.num_prior_examples:,} for the prior, {len(self.certificate_data):,} for the certificate"
        return f"HeldOutPrior({type(self.model).__name__}, {parts})"

    def count_used(self, prints: Iterable[bytes]) -> int:
        """How many of some examples have trained the prior."""
        return _count_used(Counter(prints), self.used, self.allowed)

    def count_known(self, prints: Iterable[bytes]) -> int:
        """How many of some examples are in one of the two parts."""
        return sum(key in self.used or key in self.allowed for key in prints)

    def is_as_trained(self, model: nn.Module) -> bool:
        """Whether a model has the prior's weights and buffers bit for bit, so that nothing else has trained it."""
        state = model.state_dict()
        if state.keys() != self.weights.keys():
            return False
        pairs = [(value, self.weights[name]) for name, value in state.items()]
        return all(
            isinstance(one, Tensor) and one.dtype == other.dtype and torch.equal(one.detach().cpu(), other.cpu())
            for one, other in pairs
        )

    def collated(self, model: nn.Module, collate_fn: Callable[[list[Any]], Any] | None) -> HeldOutPrior | None:
        """The same, with the examples known by the batches that a collator makes of them; None where it cannot."""
        how = AsTheTrainer(collate_fn, model) if collate_fn is not None else None
        prints: list[Counter[bytes]] = []
        try:
            for part in (self.certificate_data, self.prior_data):
                batches = (batch for _, batch in Batches(part, model=model, collate_fn=how))
                prints.append(Counter(key for batch in batches for key in batch_fingerprints(batch, model)))
        except MISSES:  # rows of texts and no collator, for one
            return None
        others = {name: getattr(self, name) for name in HELD_OUT_FIELDS}
        return HeldOutPrior(**others, allowed=prints[0], used=prints[1])


HELD_OUT_FIELDS = ("model", "weights", "prior_data", "certificate_data", "num_prior_examples", "fraction")


def _count_used(given: Counter[bytes], used: Counter[bytes], allowed: Counter[bytes]) -> int:
    # equal examples may occur in both parts: only those count that the certificate's part does not have so often
    return sum(max(0, count - allowed[key]) for key, count in given.items() if key in used)


def check_overlap(
    held_out: HeldOutPrior,
    prints: Sequence[bytes],
    model: nn.Module,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    *,
    assume_independent: bool = False,
) -> str | None:
    """Refuse examples that have trained the prior; a sentence where some belong to neither part of the split.

    The prints were taken of the batches that are certified.  Where the rows of the split do not explain all of them,
    its two parts are collated as these were, and looked at again.

    Raises:
        ValueError: some have trained the prior; none is known, so that nothing can be said of any.
    """
    used, known = held_out.count_used(prints), held_out.count_known(prints)
    if known < len(prints) and (again := held_out.collated(model, collate_fn)) is not None:
        used, known = max(used, again.count_used(prints)), max(known, again.count_known(prints))
    if used:
        raise ValueError(
            f"The prior was trained on {used:,} of these examples, so it may not be used to certify on them. "
            f"Certify on the other part: {OWN_PART}."
        )
    if known == 0 and not assume_independent:
        raise ValueError(
            f"None of the {len(prints):,} examples is in one of the two parts that train_prior() made, so the prints "
            "of the examples do not speak the same language, and nobody can see whether the prior was trained on "
            f"them. Certify what the split has, by the collate_fn that makes its batches: {OWN_PART[:-1]}, "
            f"collate_fn=...). If all of these examples are new to the prior: {VOUCH}."
        )
    if known < len(prints):
        return (
            f"{len(prints) - known:,} of the {len(prints):,} examples are in neither part of the prior's split: the "
            "certificate is valid only if they are new to the prior."
        )
    return None


def train_prior(
    model: nn.Module,
    data: Any,
    train: Callable[[nn.Module, Any], Any],
    *,
    prior_data_fraction: float = 0.5,
    seed: int = 0,
) -> HeldOutPrior:
    """Train a copy of a model on a random part of the data: the prior of a certificate on the other part.

    Args:
        model: is copied, and not changed.
        data: a ``datasets.Dataset``, a map-style dataset, or a list of batches (of which some are drawn).
        train: ``train(model, prior_data)`` trains in place, in any way; if it returns a module, that one counts.
        prior_data_fraction: share of the data on which the prior is trained, in (0, 1).
        seed: of the split.

    Returns:
        The prior, for ``certify(model, held_out.certificate_data, prior=held_out)``.  A table may have columns that
        the model does not read; what makes batches of it, ``collate_fn``, is told to ``certify``.

    Raises:
        ValueError, TypeError: a fraction that leaves a part empty, and data that cannot be split by index.

    Source: Ambroladze, Parrado-Hernández, Shawe-Taylor (NIPS 2006); Perez-Ortiz et al. (JMLR 2021).

    >>> held_out = train_prior(nn.Linear(1, 1), list(range(10)), lambda model, data: None, prior_data_fraction=0.3)
    >>> len(held_out.prior_data), len(held_out.certificate_data)
    (3, 7)
    """
    seed = seed_rule(seed, "seed")
    if not 0 < prior_data_fraction < 1:
        wanted = "prior_data_fraction must be in (0, 1), the share of the data that trains the prior"
        raise ValueError(f"{wanted}; got {prior_data_fraction}.")
    if isinstance(data, (DataLoader, Mapping, str)) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise TypeError(
            f"data must be a dataset with indices, or a list of batches, to be split; got {type(data).__name__}. "
            "Split the dataset, and make a DataLoader of each part."
        )
    first = round(prior_data_fraction * len(data))
    if not 0 < first < len(data):
        raise ValueError(
            f"prior_data_fraction={prior_data_fraction} of {len(data)} examples leaves one part empty; "
            "give more data, or a fraction nearer to 0.5."
        )
    # sorted, so that each part is read from front to back
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    prior_data, certificate_data = (select(data, sorted(rows)) for rows in (order[:first], order[first:]))
    # before the training, which may change the rows
    allowed, used = (Counter(_row_fingerprints(part, model)) for part in (certificate_data, prior_data))
    # a copy, so that the user's model may still become the posterior
    trained = copy.deepcopy(unwrap(model))
    returned = train(trained, prior_data)
    trained = unwrap(returned) if isinstance(returned, nn.Module) else trained
    return HeldOutPrior(
        model=trained,
        weights={name: value.detach().clone() for name, value in trained.state_dict().items()},
        prior_data=prior_data,
        certificate_data=certificate_data,
        num_prior_examples=first,
        fraction=float(prior_data_fraction),
        allowed=allowed,
        used=used,
    )


def select(data: Any, rows: list[int]) -> Any:
    """Some rows of a dataset, or some batches of a list."""
    if hasattr(data, "column_names"):
        return data.select(rows)
    return [data[row] for row in rows] if isinstance(data, Sequence) else Subset(data, rows)


def _row_fingerprints(data: Any, model: nn.Module) -> Iterator[bytes]:
    # a list holds batches, a dataset examples
    batched = isinstance(data, Sequence) and not isinstance(data, Subset)
    model = unwrap(model)
    for row in range(len(data)):
        yield from batch_fingerprints(data[row], model) if batched else [fingerprint(data[row], model)]
